"""What a pass may know and say besides changing the graph: target, data, measurements, decisions and predictions."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import onnx_graphsurgeon as gs

from nnc.compression.budget import Metric
from nnc.digests import code_digest, digest, file_digest
from nnc.measure import measure
from nnc.simulation.analytic import Prediction, predict
from nnc.store import Memory, Store
from nnc.target import Target

if TYPE_CHECKING:
    from nnc.rewrite import Pass

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]
Measured = TypeVar("Measured")

#: Figures that a pass can predict.
_PREDICTED = ("macs", "params", "latency_ms", "error", "accuracy")


def silent(step: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def unsaid(line: str) -> None:
    """What is told a line that nobody wants to read."""


@dataclass
class Explanation:
    """What a pass said of its decisions: see `Context`, and nnc.pipeline.Row for how each is kept."""

    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By layer."""
    curve: dict[str, Any] | None = None
    predicted: dict[str, float] | None = None


@dataclass
class Context:
    """What a pass may know besides the graph: the target, the data, the seed and the cost model."""

    target: Target
    seed: int = 0
    calibration: Any = None
    """Calibration data (nnc.data.Dataset), where the recipe has them."""
    test: Any = None
    """Test data, likewise."""
    train: Any = None
    """Training data, likewise."""
    teacher: Path | None = None
    """The ONNX model to learn from, where the recipe names one."""
    trains: bool = True
    """Whether training passes train; where they only show what they would do, they leave that out."""
    data_key: str = ""
    """A digest of the calibration data and of how it is prepared: part of the key of what is measured on it."""
    threads: int | None = None
    """Cores of the target's unit to predict for; None: as many as it says."""
    progress: Progress = silent
    """Called with a step of the pass, what is done of it, and how much there is: first with 0 done, last with all."""
    imported: gs.Graph | None = None
    """The model before the first pass; without it, the graph that is given to `run` first."""
    unquantized: gs.Graph | None = None
    """The graph in front of the last pass that quantized it: what integers are rounded from."""
    store: Store = field(default_factory=Memory)
    skipped: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    explanation: Explanation = field(default_factory=Explanation)
    _code: str = ""
    _evaluated: list[tuple[gs.Graph, float]] = field(default_factory=list)

    def start(self, pass_: "Pass") -> None:
        """Forget what the pass before `pass_` said."""
        self.skipped, self.explanation = {}, Explanation()
        self._code = digest(code_digest(), file_digest(Path(inspect.getfile(type(pass_)))))

    def skip(self, node: gs.Node, reason: str) -> None:
        """Record a place that was considered and left alone, once."""
        self.skipped[node.name, reason] = {"node": node.name, "reason": reason}

    def decide(
        self,
        layer: str,
        choice: str,
        *,
        macs: tuple[int, int],
        params: tuple[int, int],
        latency_ms: tuple[float, float] | None = None,
        error: float | None = None,
    ) -> None:
        """Record what was chosen for a layer, "keep" where it stays; the last choice for a layer counts.

        Figures are before and after. `error` is what the choice alone is predicted to do to the outputs, relative to
        their size: |difference| / |outputs|, both as root mean square.
        """
        made = {
            "layer": layer,
            "choice": choice,
            "macs": list(map(int, macs)),
            "params": list(map(int, params)),
            "latency_ms": None if latency_ms is None else list(map(float, latency_ms)),
            "error": None if error is None else float(error),
        }
        self.explanation.decisions[layer] = {key: value for key, value in made.items() if value is not None}

    def curve(self, metric: str, points: Iterable[Mapping[str, Any]]) -> None:
        """Record the predicted trade-off: points {"budget", "error", "chosen"} and, where it is known, "accuracy".

        `metric` is "macs", "params" or "latency_ms", `budget` the share of it that is kept, 0 to 1; `error` is relative
        as in `decide`, `accuracy` from 0 to 1; `chosen` marks the point that the pass took. They are kept in the order
        of their budgets. Raises ValueError for a budget that is not finite.
        """
        made = sorted(map(_point, points), key=lambda point: point["budget"])
        self.explanation.curve = {"metric": metric, "points": made} if made else None

    def predicted(self, **figures: float | None) -> None:
        """Record what the pass expects of the whole graph after it; the pipeline measures the same beside it.

        Figures are `macs`, `params`, `latency_ms`, `error` as in `decide`, and `accuracy`; None is not known. Raises
        ValueError for any other.
        """
        if unknown := figures.keys() - _PREDICTED:
            raise ValueError(f"no figure is called {min(unknown)}, only {', '.join(_PREDICTED)}")
        self.explanation.predicted = {key: float(value) for key, value in figures.items() if value is not None} or None

    def once(self, name: str, key: str, compute: Callable[[], Measured]) -> Measured:
        """What `compute` returns, or returned under this name and key in an earlier compile.

        The value must be one that JSON holds, and comes back as JSON gives it: tuples as lists, keys as strings. The
        key must hold everything that the value depends on (nnc.digests: `digest` over `graph_digest(graph)`,
        `data_key`, parameters) besides the code of nnc and of the pass, which count by themselves. None is not kept.
        """
        return self.store.once(name, digest(key, self._code), compute)

    def predict(self, graph: gs.Graph) -> Prediction:
        """The cost model: latency, memory and energy of `graph` on the target."""
        return predict(graph, self.target, self.threads)

    def cost(self, graph: gs.Graph, metric: Metric) -> float:
        """What `graph` costs by the metric of a budget: MACs, parameters, or predicted milliseconds."""
        if metric == "latency":
            return self.predict(graph).latency_ms
        return float(getattr(measure(graph), metric))

    def accuracy(self, graph: gs.Graph) -> float | None:
        """Top-1 accuracy on the test data, 0 to 1; None without test data. A graph is evaluated once."""
        if self.test is None:
            return None
        for evaluated, accuracy in self._evaluated:
            if evaluated is graph:
                return accuracy
        from nnc.accuracy import evaluate

        def report(done: int, total: int) -> None:
            self.progress("accuracy", done, total)

        accuracy = evaluate(graph, self.test, progress=report).top1
        self._evaluated = [each for each in self._evaluated if each[0] is self.imported] + [(graph, accuracy)]
        return accuracy

    def imported_accuracy(self) -> float | None:
        """`accuracy` of the model before the first pass."""
        assert self.imported is not None, "the pipeline has started"
        return self.accuracy(self.imported)


def _point(given: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a trade-off curve, complete and in JSON's types."""
    budget, accuracy = float(given["budget"]), given.get("accuracy")
    if not math.isfinite(budget):
        raise ValueError(f"the budget of a point must be a number, not {budget}")
    return {
        "budget": budget,
        "error": float(given["error"]),
        "accuracy": None if accuracy is None else float(accuracy),
        "chosen": bool(given.get("chosen", False)),
    }
