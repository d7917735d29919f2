"""The processor that kernels are compiled for, checked: LLVM warns of names that it does not know, and goes on."""

from collections.abc import Iterable

import tvm
from tvm.target import codegen

from nnc import toml
from nnc.errors import NncError
from nnc.target import Target

# Those of Hexagon's vectors, which no processor has by itself.
_HVX = {f"hvxv{version}" for version in (60, 62, 65, 66, 67, 68, 69, 71, 73, 75, 79)} | {"hvx", "hvx-length128b"}


def machine(target: Target) -> tvm.target.Target:
    """The target's processor for TVM; NncError where its file names one, or a feature, that LLVM does not know."""
    target.require_lowerable()
    described, place = target.unit.tvm, f"{target.name}: unit '{target.unit.name}': tvm"
    if target.unit.vector_bits < 64:
        raise NncError(
            f"{target.name}: unit '{target.unit.name}': no code can be generated without vectors",
            f"use --no-lower; 'vector_bits' is {target.unit.vector_bits}",
        )
    triple, cpu, features = described["mtriple"], described.get("mcpu", "generic"), described.get("mattr", ())
    try:
        tvm.target.Target({key: value for key, value in described.items() if key not in ("mcpu", "mattr")})
    except ValueError as error:
        raise NncError(f"{place}: {_reason(error)}") from error
    known = {str(name) for name in tvm.get_global_func("target.llvm_get_cpu_archlist")(_plain(triple))}
    if cpu not in known | {"generic"}:
        raise NncError(f"{place}: LLVM knows no processor '{cpu}' for {triple}", toml.nearest(cpu, known))
    _check_features(features, triple, known, place)
    if target.unit.kind == "dsp":
        # Without it, TVM puts every load of a register together from two.
        described = {"vector-width": target.unit.vector_bits, **described}
    return tvm.target.Target(dict(described))


def _check_features(features: Iterable[str], triple: str, processors: Iterable[str], place: str) -> None:
    """Every feature begins with + or -, and some processor of the architecture has it."""
    known = {str(each) for cpu in processors for each in codegen.llvm_get_cpu_features(_plain(triple, cpu))}
    known |= _HVX if triple.startswith("hexagon") else set()
    for feature in features:
        if feature[:1] not in ("+", "-"):
            raise NncError(f"{place}: 'mattr' has '{feature}', without + or -", f'such as "+{feature}"')
        if feature[1:] not in known:
            raise NncError(
                f"{place}: LLVM knows no feature '{feature[1:]}' of {triple}", toml.nearest(feature[1:], known)
            )


def _plain(triple: str, cpu: str = "generic") -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})


def _reason(error: ValueError) -> str:
    """The first sentence of TVM's error, which may be many lines long."""
    sentence = str(error).strip().splitlines()[-1].split(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:]
