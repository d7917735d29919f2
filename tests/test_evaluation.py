"""What `nnc eval` measures, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from nnc import evaluation
from nnc.artifact import Tensor
from nnc.context import silent
from nnc.data import Preprocess
from nnc.errors import NncError


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
