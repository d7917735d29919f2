"""Processors of target files: what LLVM does not know is refused, not ignored."""

from typing import Any

import pytest

from nnc import target
from nnc.errors import NncError
from nnc.lowering.machine import machine


def board(**changes: Any) -> target.Target:
    """qcs605 with other keys in its dict for TVM."""
    chip = target.load("qcs605")
    return chip.model_copy(update={"unit": chip.unit.model_copy(update={"tvm": chip.unit.tvm | changes})})


@pytest.mark.parametrize("name", [name for name in target.names() if target.load(name).unit.lowerable])
def test_shipped_targets_are_known(name: str) -> None:
    chip = target.load(name)
    assert machine(chip).attrs["mcpu"] == chip.unit.tvm["mcpu"]


WRONG = [
    ({"mcpu": "cortex-a999"}, "LLVM knows no processor 'cortex-a999' for aarch64-linux-gnu", "did you mean 'cortex-a"),
    ({"mcpu": "znver3"}, "LLVM knows no processor 'znver3' for aarch64-linux-gnu", "did you mean"),
    ({"mattr": ["-dotproduct"]}, "LLVM knows no feature 'dotproduct' of aarch64-linux-gnu", "did you mean 'dotprod'?"),
    ({"mattr": ["fullfp16"]}, "'mattr' has 'fullfp16', without + or -", 'such as "+fullfp16"'),
    ({"num-cors": 8}, "unknown config option 'num-cors'", None),
    ({"num-cores": "8"}, "option 'num-cores': expected type 'int'", None),
]


@pytest.mark.parametrize(("changes", "message", "hint"), WRONG, ids=[row[1] for row in WRONG])
def test_unknown_names_are_refused(
    changes: dict[str, Any], message: str, hint: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NncError) as caught:
        machine(board(**changes))
    assert caught.value.message.startswith(f"qcs605: unit 'cpu': tvm: {message}")
    assert (caught.value.hint or "").startswith(hint or "")
    assert capfd.readouterr() == ("", "")


def test_an_instruction_set_without_code_generation_is_refused() -> None:
    with pytest.raises(NncError, match="qcs605: no code can be generated for zx81 yet"):
        machine(board(mtriple="zx81-sinclair"))


def test_a_processor_without_vectors_is_refused() -> None:
    chip = target.load("qcs605")
    scalar = chip.model_copy(update={"unit": chip.unit.model_copy(update={"vector_bits": 32})})
    with pytest.raises(NncError, match="qcs605: unit 'cpu': no code can be generated without vectors") as caught:
        machine(scalar)
    assert str(caught.value.hint).startswith("use --no-lower")
