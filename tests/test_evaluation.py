"""What `nnc eval` measures, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnc import accuracy, evaluation
from nnc.artifact import Tensor
from nnc.context import silent
from nnc.data import Preprocess
from nnc.errors import NncError
from nnc.session import Session


class _Compiled:
    """A compile of a model that reads a number, and then something with samples."""

    has_library, preprocess, runtime = True, Preprocess(), "the library"
    inputs = (Tensor("k", (), np.dtype(np.float32)), Tensor("x", (1, 3), np.dtype(np.float32)))

    def library(self, threads: int | None) -> None:
        """Nothing runs it."""


def test_a_first_input_that_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.Artifact, "open", lambda path: _Compiled())
    np.savez(tmp_path / "data.npz", k=np.zeros(4), x=np.zeros((4, 3)), labels=np.zeros(4, np.int64))
    with pytest.raises(NncError, match="no batch in common: 'k' a single number, 'x' 1"):
        evaluation.evaluate(tmp_path, tmp_path / "data.npz", {}, {}, progress=silent)


def test_a_compile_has_its_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.Artifact, "open", lambda path: _Compiled())
    with pytest.raises(NncError, match=r"--shape: .* was compiled for the shapes that it has"):
        evaluation.evaluate(tmp_path, tmp_path / "data.npz", {}, {"x": [1, 3]}, progress=silent)


def test_onnxruntime_takes_the_threads_that_are_asked_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    class Counted(Session):
        def __init__(self, *given: Any, **options: Any) -> None:
            taken.append(options["threads"])
            super().__init__(*given, **options)

    monkeypatch.setattr(accuracy, "Session", Counted)
    for threads in (1, None):
        evaluation.evaluate(
            project / "model.onnx", project / "test.npz", {}, {}, samples=2, threads=threads, progress=silent
        )
    assert taken == [1, None]
