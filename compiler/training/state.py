"""What a killed run goes on from: everything that the next epoch depends on, written beside and renamed."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnc.data import Dataset, listed
from nnc.digests import array_bytes, code_digest, digest, file_digest, graph_digest
from nnc.model import wire
from nnc.training.module import GraphModule

if TYPE_CHECKING:
    from nnc.training.loop import Plan, Span


@dataclass(frozen=True)
class State:
    """The file of a run; None where none is kept."""

    file: Path | None

    @classmethod
    def of(cls, module: GraphModule, plan: Plan, span: Span) -> State:
        """Named after all that the run depends on, the code among it, so that no other run takes it for its own."""
        if plan.folder is None:
            return cls(None)
        weights = (array_bytes(each.detach().cpu().numpy()) for each in module.parameters())
        code = code_digest(), file_digest(Path(inspect.getfile(type(plan.options)))), torch.__version__
        key = digest(
            *code, graph_digest(module.graph), *weights, plan.options.model_dump_json(),
            _described(plan.data), graph_digest(plan.teacher) if plan.teacher else "", repr((plan.seed, span)),
        )  # fmt: skip
        return cls(plan.folder / f"{key}.pt")

    def save(self, values: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            written = io.BytesIO()
            torch.save(values, written)
            with wire.replacing(self.file) as file:
                file.write(written.getbuffer())

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None where nothing was, or it is damaged."""
        with contextlib.suppress(OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError):
            if self.file is not None:
                saved: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
                return saved
        return None


def _described(data: Dataset) -> str:
    """Data by its files' names, sizes and times, its labels, and what its first sample is to the model.

    Reading them all would take longer than many an epoch.
    """
    files, labels = ([data.path], None) if data.path.is_file() else listed(data.path)
    stats = [(os.path.relpath(each, data.path), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    first = {name: digest(array_bytes(values)) for name, values in next(data.batches(1)).items()}
    return repr((data.path.name, stats, labels, len(data), first))
