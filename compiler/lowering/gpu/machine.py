"""The GPU that kernels are compiled for, as TVM knows it."""

from __future__ import annotations

import re

import tvm

from nnc.errors import NncError
from nnc.target import Target


def machine(target: Target) -> tvm.target.Target:
    """The target's GPU for TVM; NncError where its file says something of it that TVM does not know."""
    target.require_lowerable()
    described, place = dict(target.unit.tvm), f"{target.name}: unit '{target.unit.name}': tvm"
    if described["kind"] == "cuda" and not re.fullmatch(r"sm_\d{2,3}", str(described.get("arch", ""))):
        raise NncError(f"{place}: 'arch' must be a compute capability", 'such as "sm_72"')
    host = described.pop("host", {"kind": "llvm"})
    for key in ("max_threads_per_block", "max_shared_memory_per_block"):
        if key in described and (not isinstance(described[key], int) or described[key] < 1):
            raise NncError(f"{place}: '{key}' must be a number from 1 on")
    try:
        return tvm.target.Target(described, host=tvm.target.Target(host))
    except (ValueError, TypeError) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        sentence = lines[-1].split(". ")[0].rstrip(".") if lines else "TVM refuses it"
        raise NncError(f"{place}: {sentence[:1].lower()}{sentence[1:]}") from error
