"""Memory: tensors that are alive at the same time never overlap, and nothing is kept longer than it is read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nnc.lowering.program import Copy, Program, Tensor, plan_memory


def step(source: Tensor, result: Tensor) -> Copy:
    return Copy([], source, result, 1, result.bytes, 0, 0)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Every step reads an earlier tensor and writes a new one, or a part of a larger one that is read at the end."""
    whole = Tensor((draw(st.integers(64, 4096)),), "float32")
    tensors = [Tensor((draw(st.integers(1, 2048)),), "float32", fixed=True)]
    program = Program()
    for _ in range(draw(st.integers(1, 12))):
        source = draw(st.sampled_from(tensors))
        if draw(st.booleans()):
            made = Tensor((draw(st.integers(1, 2048)),), "float32")
        else:
            size = draw(st.integers(1, whole.shape[0]))
            made = Tensor((size,), "float32", whole, 4 * draw(st.integers(0, whole.shape[0] - size)))
        program.steps.append(step(source, made))
        tensors.append(made)
    program.steps.append(step(whole, Tensor((1,), "float32", fixed=True)))
    return program


def lifetimes(program: Program) -> dict[int, tuple[Tensor, int, int]]:
    """By id: the tensor that owns memory, and the first and last step that touches it."""
    found: dict[int, tuple[Tensor, int, int]] = {}
    for time, each in enumerate(program.steps):
        for tensor in (*each.reads, *each.results):
            root = tensor.root()[0]
            if not root.fixed:
                found[id(root)] = root, found.get(id(root), (root, time, time))[1], time
    return found


@given(programs())
def test_tensors_alive_together_do_not_overlap(program: Program) -> None:
    plan, alive = plan_memory(program), list(lifetimes(program).values())
    assert set(plan.offsets) == {id(tensor) for tensor, _, _ in alive}
    for i, (one, first, last) in enumerate(alive):
        start = plan.offsets[id(one)]
        assert start % program.alignment == 0
        assert start + one.bytes <= plan.bytes
        for other, since, until in alive[:i]:
            if since <= last and first <= until:
                begin = plan.offsets[id(other)]
                assert start + one.bytes <= begin or begin + other.bytes <= start


@given(programs())
def test_memory_is_at_most_the_sum_and_at_least_the_peak(program: Program) -> None:
    plan, alive = plan_memory(program), list(lifetimes(program).values())
    padded = [-(-tensor.bytes // program.alignment) * program.alignment for tensor, _, _ in alive]
    peaks = [
        sum(size for size, (_, first, last) in zip(padded, alive, strict=True) if first <= time <= last)
        for time in range(len(program.steps))
    ]
    assert max(peaks) <= plan.bytes <= sum(padded)


def test_a_chain_needs_two_tensors() -> None:
    chain = [Tensor((1024,), "float32") for _ in range(8)]
    program = Program(steps=[step(a, b) for a, b in pairwise(chain)])
    assert plan_memory(program).bytes == 2 * 4096


def test_views_of_views_add_their_offsets() -> None:
    base = Tensor((8, 16), "float32")
    inner = base.view((4, 16), 64).view((16,), 128)
    assert inner.root() == (base, 192)
    assert base.view((8, 16)) is base
    assert Tensor((3,), "int64").bytes == 3 * np.dtype(np.int64).itemsize
