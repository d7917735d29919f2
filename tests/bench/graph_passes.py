"""The graph passes against onnxslim and onnxsim: nodes left, wall time, peak memory.

    python tests/bench/graph_passes.py [--rounds 5] [--all] [NETWORK ...]

Every run is a process of its own that reads a model from a file, simplifies it and writes the result; nnc also proves
that the outputs are equal, and measures after every pass. The tools take turns, and medians are printed. Exits with 1
when nnc leaves more nodes than onnxslim, or takes more time or memory than the better of the two.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("nnc", "onnxslim", "onnxsim")

#: Name of the table's row -> arguments of nnc.networks.build.
CASES: dict[str, dict[str, object]] = {
    "vgg16": {},
    "resnet50": {},
    "densenet201": {},
    "efficientnet_b0": {},
    "shufflenet_v2": {},
}
VARIANTS: dict[str, dict[str, object]] = {
    "vgg16 x0.5, 96": {"width": 0.5, "input_size": 96},
    "resnet50 x0.75, 160": {"width": 0.75, "input_size": 160},
    "densenet121, 128": {"input_size": 128},
    "efficientnet_b0 x1.5, 300": {"width": 1.5, "input_size": 300},
    "shufflenet_v2 x2, 320": {"width": 2.0, "input_size": 320},
    "mobilenet_v2": {},
    "squeezenet1_1": {},
    "resnet18": {},
    "resnet56": {},
}


@dataclass
class Run:
    """What one process took: wall seconds from start to exit, and its peak resident memory in MB."""

    seconds: float
    megabytes: float


def simplify(tool: str, source: Path, result: Path) -> None:
    """What a process does: read, simplify, write."""
    if tool == "nnc":
        from nnc import graph, passes, pipeline, target

        after, _ = pipeline.run(
            graph.load(source), [pass_() for pass_ in passes.GRAPH_PASSES], pipeline.Context(target.load("x86"))
        )
        graph.save(after, result)
    elif tool == "onnxslim":
        import onnxslim

        onnxslim.slim(str(source), str(result))
    else:
        import onnx
        import onnxsim

        model, equal = onnxsim.simplify(str(source))
        assert equal
        onnx.save(model, result)


def measured(tool: str, source: Path, result: Path) -> Run:
    """Run a tool in a process of its own."""
    command = [sys.executable, __file__, "--simplify", tool, str(source), str(result)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{tool} failed on {source.name}: {errors.decode()}")
    return Run(seconds, usage.ru_maxrss / 1024)


def build(case: str, folder: Path) -> Path:
    """Write the network of a row; in a process of its own, so that its memory is gone."""
    path = folder / f"{case.replace(' ', '_')}.onnx"
    name, arguments = case.split()[0].rstrip(","), (CASES | VARIANTS)[case]
    code = f"import onnx; from nnc import networks; onnx.save(networks.build({name!r}, **{arguments!r}), {str(path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    return path


def nodes(path: Path) -> int:
    """Nodes of a model; counted elsewhere, because a process starts with the peak memory of the one that starts it."""
    code = "from pathlib import Path; from nnc.model import wire; "
    code += f"print(len(wire.read(Path({str(path)!r}))[0].graph.node))"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def compare(case: str, rounds: int, folder: Path) -> bool:
    """Print the row of a network; whether nnc holds what it promises."""
    source = build(case, folder)
    results = {tool: folder / f"{tool}.onnx" for tool in TOOLS}
    runs: dict[str, list[Run]] = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool in TOOLS:
            runs[tool].append(measured(tool, source, results[tool]))
    left = {tool: nodes(path) for tool, path in results.items()}
    seconds = {tool: statistics.median(run.seconds for run in runs[tool]) for tool in TOOLS}
    memory = {tool: statistics.median(run.megabytes for run in runs[tool]) for tool in TOOLS}
    best = {name: min(each["onnxslim"], each["onnxsim"]) for name, each in (("s", seconds), ("MB", memory))}
    holds = left["nnc"] <= left["onnxslim"] and seconds["nnc"] <= best["s"] and memory["nnc"] <= best["MB"]
    size = source.stat().st_size / 2**20
    print(
        f"{case:<26}{size:>7.0f} MB"
        + "".join(f"{left[tool]:>7}{seconds[tool]:>8.2f} s{memory[tool]:>7.0f} MB" for tool in TOOLS)
        + f"{best['s'] / seconds['nnc']:>8.2f}{best['MB'] / memory['nnc']:>8.2f}{memory['nnc'] / size:>8.2f}"
        + ("" if holds else "  worse"),
        flush=True,
    )
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="rows of the table; the five of the default when none is given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="other widths, input sizes and networks, too")
    parser.add_argument("--simplify", nargs=3, metavar=("TOOL", "SOURCE", "RESULT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.simplify:
        tool, source, result = arguments.simplify
        simplify(tool, Path(source), Path(result))
        return 0
    print(f"{'':<26}{'file':>10}" + "".join(f"{tool:>{27}}" for tool in TOOLS) + "   best peer / nnc     nnc")
    print(
        f"{'network':<26}{'':>10}"
        + f"{'nodes':>7}{'time':>10}{'peak':>10}" * 3
        + f"{'time':>8}{'peak':>8}{'x file':>8}"
    )
    cases = arguments.networks or [*CASES, *(VARIANTS if arguments.all else ())]
    with tempfile.TemporaryDirectory() as folder:
        return int(not all([compare(case, arguments.rounds, Path(folder)) for case in cases]))


if __name__ == "__main__":
    sys.exit(main())
