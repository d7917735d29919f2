"""All graph passes, in random order, on random graphs: the outputs stay, and repeating the passes comes to an end."""

import random
import re

import pytest

from nnc import passes, pipeline, target, testing

WEIGHTS = (
    "float[4, 4, 1, 1] W1, float[4, 4, 3, 3] W3, float[4, 1, 3, 3] D, float[4] b, float[4] s, float[4] m, float[4] v, "
    "float[4, 1, 1] c, float k = {0.5}, float zero = {0.0}, float one = {1.0}, float two = {2.0}, "
    "int64[4] shape = {1, 4, 6, 6}, int64[3] flat = {1, 2, -1}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, "
    "int64[1] start = {0}, int64[1] end = {4}, int64[1] axis = {1}, int64[1] last = {2}"
)

# What computes `?` from `x` and `z`, all of them [1, 4, 6, 6]; values between are called `?a` and `?b`.
STEPS = [
    "? = Conv(x, W1, b)",
    "? = Conv<pads = [1, 1, 1, 1]>(x, W3)",
    "? = Conv<pads = [1, 1, 1, 1], group = 4>(x, D, b)",
    "? = ConvTranspose<pads = [1, 1, 1, 1]>(x, W3)",
    "?a = Pad(x, pads) ? = Conv(?a, W3)",
    "?a = Pad(x, pads) ? = MaxPool<kernel_shape = [3, 3]>(?a)",
    "? = BatchNormalization(x, s, b, m, v)",
    "?a = GlobalAveragePool(x) ? = Mul(x, ?a)",
    "? = Relu(x)",
    "? = Sigmoid(x)",
    "? = Clip(x, zero, two)",
    "? = Min(x, k)",
    "?a = HardSigmoid<alpha = 0.16666667>(x) ? = Mul(?a, x)",
    "? = Mul(x, c)",
    "? = Div(x, two)",
    "? = Add(c, x)",
    "? = Sub(k, x)",
    "? = Mul(one, x)",
    "? = Add(x, z)",
    "? = Identity(x)",
    "? = Dropout(x)",
    "?a = Transpose<perm = [0, 2, 3, 1]>(x) ? = Transpose<perm = [0, 3, 1, 2]>(?a)",
    "?a = Transpose(x) ?b = Relu(?a) ? = Transpose(?b)",
    "?a = Reshape(x, flat) ? = Reshape(?a, shape)",
    "?a = Flatten(x) ?b = Unsqueeze(?a, last) ? = Reshape(?b, shape)",
    "?a = Shape(z) ? = Reshape(x, ?a)",
    "?a = Concat<axis = 1>(x, z) ? = Slice(?a, start, end, axis)",
    "?a = ReduceMean<axes = [2, 3], keepdims = 0>(x) ?b = Unsqueeze(?a, last) ?c = Unsqueeze(?b, last) ? = Add(?c, z)",
]


def random_graph(rng: random.Random) -> str:
    """Steps that read one of the last few values; some are done twice, and one value between is an output, too."""
    values, steps = ["x"], []
    for index in range(rng.randrange(4, 16)):
        step = rng.choice(STEPS)
        step = re.sub(r"\bx\b", rng.choice(values[-2:]), step)
        step = re.sub(r"\bz\b", rng.choice(values[-4:]), step)
        steps.append(step.replace("?", f"v{index}"))
        values.append(f"v{index}")
        if rng.random() < 0.2:
            steps.append(step.replace("?", f"w{index}"))
            values.append(f"w{index}")
    outputs = ", ".join(f"float {name}" for name in sorted({values[-1], rng.choice(values[1:])}))
    return f"net (float[1, 4, 6, 6] x) => ({outputs}) <{WEIGHTS}> {{ {' '.join(steps)} }}"


@pytest.mark.parametrize("seed", range(60))
def test_random_graph(seed: int) -> None:
    rng = random.Random(seed)
    before = testing.graph(random_graph(rng), seed=seed)
    steps = [pass_() for pass_ in passes.GRAPH_PASSES]
    context = pipeline.Context(target.load("x86"))
    after, rows = pipeline.run(before, rng.sample(steps, len(steps)), context)
    assert {row.proof for row in rows} <= {"outputs equal", "unchanged"}
    for _ in range(3):
        after, rows = pipeline.run(after, steps, context)
    assert [row.name for row in rows if row.changed] == []
    testing.check_outputs(before, after, seed=1)
