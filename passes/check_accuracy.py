"""check-accuracy: a compile that loses too much accuracy ends here."""

from typing import ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from nnc.errors import NncError
from nnc.rewrite import Context, Effect, Pass


class CheckAccuracy(Pass):
    """Check that the accuracy has not dropped by more than `max_drop` since the import.

    graph  ->  graph

    Exact: it changes nothing. It compares top-1 accuracies on the recipe's test data, as shares from 0 to 1.

    Declines for nothing; without test data, or when the drop is larger, the compile stops. A plan, which
    does not train, tells the drop and goes on.

    Reference: none.
    """

    name: ClassVar[str] = "check-accuracy"
    effect: ClassVar[Effect] = "exact"
    only_looks: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("test",)

    max_drop: float = Field(
        ..., ge=0, le=1, description="largest drop of the top-1 accuracy, as a share: 0.01 is one point of a hundred"
    )

    def looks_back(self) -> bool:
        return True

    def run(self, graph: gs.Graph, context: Context) -> int:
        before, after = context.imported_accuracy(), context.accuracy(graph)
        assert before is not None
        assert after is not None
        if before - after <= self.max_drop + 1e-9:  # 0.94 - 0.93 is a little more than 0.01
            return 0
        dropped = (
            f"the accuracy dropped from {before:.4f} to {after:.4f}, by {before - after:.4f}; "
            f"max_drop is {self.max_drop:g}"
        )
        if context.trains:
            raise NncError(
                dropped, "allow a larger max_drop, or ask less of the passes before; nnc bisect shows what each costs"
            )
        context.skip(graph.nodes[-1], f"{dropped}: nnc compile stops here, unless what it trains wins enough back")
        return 0
