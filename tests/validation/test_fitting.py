"""The fit finds the coefficients that rows were made with, and says honestly what it does not know."""

import dataclasses
import tomllib
from collections.abc import Iterator
from importlib import resources

import numpy as np
import pytest

from nnc import graph as graphs
from nnc import networks
from nnc.errors import NncError
from nnc.hardware import efficiency
from nnc.hardware.efficiency import Efficiency
from nnc.simulation.kernels import kernels
from nnc.simulation.machine import WIDTHS
from nnc.simulation.work import Work, work
from nnc.validation import fit as command
from nnc.validation import fitting
from nnc.validation.samples import Sample, Stack
from nnc.validation.settings import Setting, setting
from nnc.validation.table import Row

CORES = ("Cortex-A53", "Cortex-A72", "Cortex-A73", "Cortex-A76")
NETWORKS = ("mobilenet_v2", "resnet18", "squeezenet1_1", "vgg11", "resnet50")
TRUE = Efficiency.model_validate(efficiency.profile("arm/ncnn")["float32"])


@pytest.fixture(scope="module")
def works() -> dict[str, Work]:
    graphs_of = {name: graphs.from_model(networks.build(name, seed=None, input_size=96)) for name in NETWORKS}
    return {name: work(kernels(graph)) for name, graph in graphs_of.items()}


def samples(works: dict[str, Work], engine: str = "ncnn", dtype: str = "fp32", noise: float = 0.0) -> Iterator[Sample]:
    """Rows that a machine with the coefficients TRUE would give."""
    rng = np.random.default_rng(0)
    for core in CORES:
        for threads in ("1", "4"):
            for name, todo in works.items():
                row = Row(2, core, "cpu", threads, core, "2.0", engine, dtype, name, "1x3x96x96", 1.0)
                place = setting(row, ())
                assert isinstance(place, Setting)
                made = Sample(row, place, todo.cast(WIDTHS[place.dtype]))
                (exact,) = Stack([made]).predict_ms(TRUE)
                latency = float(exact * np.exp(noise * rng.standard_normal()))
                yield dataclasses.replace(made, row=dataclasses.replace(row, latency_ms=latency))


def errors(fitted: fitting.Fit, kept: list[Sample]) -> np.ndarray:
    measured = np.array([each.row.latency_ms for each in kept])
    return np.abs(fitting.predict_ms(fitted, kept) / measured - 1)


def test_rows_of_the_model_are_explained(works: dict[str, Work]) -> None:
    kept = list(samples(works))
    fitted = fitting.fit(kept)
    assert errors(fitted, kept).mean() < 0.05  # the priors pull a little
    assert fitted.profiles["arm/ncnn", "float32"].winograd == pytest.approx(TRUE.winograd, rel=0.4)


def test_a_few_rows_that_are_wrong_do_not_decide(works: dict[str, Work]) -> None:
    kept = list(samples(works))
    broken = [
        dataclasses.replace(each, row=dataclasses.replace(each.row, latency_ms=5 * each.row.latency_ms))
        if index % 20 == 0
        else each
        for index, each in enumerate(kept)
    ]
    assert np.median(errors(fitting.fit(broken), kept)) < 0.1


def test_the_same_rows_give_the_same_fit(works: dict[str, Work]) -> None:
    kept = list(samples(works, noise=0.1))
    assert fitting.fit(kept) == fitting.fit(kept)


def test_a_chip_that_is_left_out_teaches_nothing(works: dict[str, Work]) -> None:
    """Whatever its rows say, the prediction of a chip that is left out stays the same."""
    kept = list(samples(works, noise=0.05))
    slow = [
        dataclasses.replace(each, row=dataclasses.replace(each.row, latency_ms=3 * each.row.latency_ms))
        if each.row.chip == CORES[0]
        else each
        for each in kept
    ]
    # From a fit that never saw it, so that not even the start of the iterations knows.
    start = fitting.fit([each for each in kept if each.row.chip != CORES[0]])
    out = np.array([each.row.chip == CORES[0] for each in kept])
    predicted = [fitting.left_out(rows, start, "chip", lambda *_: None)[out] for rows in (kept, slow)]
    np.testing.assert_array_equal(*predicted)


def test_an_engine_without_rows_is_predicted_as_all_engines_together(works: dict[str, Work]) -> None:
    kept = list(samples(works))
    fitted = fitting.fit(kept)
    assert fitted.of(("arm/unheard-of", "float32")) == fitted.profiles["arm/any", "float32"]
    assert fitted.of(("arm/ncnn", "float16")) == fitted.profiles["arm/ncnn", "float32"]
    assert fitted.of(("riscv/ncnn", "float32")) is None


def test_half_precision_starts_from_single(works: dict[str, Work]) -> None:
    single = list(samples(works))
    half = [each for each in samples(works, dtype="fp16") if each.row.core_type == "Cortex-A76"][:1]
    fitted = fitting.fit(single + half)
    near, far = fitted.profiles["arm/ncnn", "float16"], fitted.profiles["arm/ncnn", "float32"]
    assert near.depthwise == pytest.approx(far.depthwise, rel=0.15)


def test_an_engine_of_few_rows_starts_between_what_is_usual_and_its_family(works: dict[str, Work]) -> None:
    """A network without depthwise layers says nothing of them: with two engines, two thirds of the way to both."""
    one = next(each for each in samples(works, engine="other") if each.row.model_id == "vgg11")
    fitted = fitting.fit([*samples(works), one]).profiles
    family, other = fitted["arm/any", "float32"], fitted["arm/other", "float32"]
    usual = fitting._CPU["depthwise"][0]
    assert other.depthwise == pytest.approx(family.depthwise ** (2 / 3) * usual ** (1 / 3))
    assert usual < other.depthwise < family.depthwise


def test_own_code_fuses_what_is_known_to_be_fused(works: dict[str, Work]) -> None:
    kept = [*samples(works), *samples(works, engine=fitting.OWN)]
    fitted = fitting.fit(kept).profiles
    assert fitted["arm/nnc", "float32"].unfused == 0.0 < fitted["arm/ncnn", "float32"].unfused


def test_the_nearest_type_stands_for_one_without_rows(works: dict[str, Work]) -> None:
    kept = [*samples(works), *samples(works, dtype="fp16")]
    fitted = fitting.fit([each for each in kept if each.row.core_type == "Cortex-A76"])
    assert fitted.of(("arm/ncnn", "int8")) == fitted.profiles["arm/ncnn", "float16"]


def test_the_file_of_profiles_is_what_targets_read(works: dict[str, Work]) -> None:
    kept = list(samples(works))
    fitted = fitting.fit(kept)
    found = {"fit": errors(fitted, kept), "model_id": errors(fitted, kept), "chip": np.full(len(kept), np.nan)}
    listed = {
        (each["name"], each["dtype"]): each for each in tomllib.loads(command.written(fitted, kept, found))["profile"]
    }
    assert set(listed) == {("arm/any", "float32"), ("arm/ncnn", "float32")}
    entry = listed["arm/ncnn", "float32"]
    assert (entry["rows"], entry["chips"]) == (len(kept), len(CORES))
    read, kept_in_memory = Efficiency.model_validate(entry["efficiency"]), fitted.profiles["arm/ncnn", "float32"]
    for name, value in kept_in_memory.model_dump(exclude={"error"}).items():
        assert getattr(read, name) == pytest.approx(value, rel=1e-3)
    assert read.error is None  # nobody knows how far off the next chip is
    found["chip"] = 2 * found["fit"]
    entry = tomllib.loads(command.written(fitted, kept, found))["profile"][1]
    assert entry["efficiency"]["error"] == entry["error"]["chips"] == pytest.approx(2 * entry["error"]["fit"], abs=2e-3)
    (emulated,) = tomllib.loads(command.written(fitted, kept, found, emulated=True))["profile"]
    assert (emulated["name"], emulated["error"]) == ("arm/ncnn", entry["error"])  # of engines alone
    assert "error" not in emulated["efficiency"]  # no chip was measured, so none is to be expected


def test_shipped_profiles_are_read_and_say_what_to_expect() -> None:
    assert {"arm/any", "arm/ncnn", "x86/ncnn", "nvidia/tensorrt", "adreno/tflite"} <= set(efficiency.names())
    text = resources.files("nnc.targets").joinpath(efficiency.FILE).read_text("utf-8")
    compared = {(each["name"], each["dtype"]): each["error"] for each in tomllib.loads(text)["profile"]}
    for name in efficiency.names():
        for dtype, coefficients in efficiency.profile(name).items():
            errors = compared.get((name, dtype), {})
            expected = max(errors.values()) if "chips" in errors else None
            assert Efficiency.model_validate(coefficients).error == expected
    for key in (("arm/nnc", "float32"), ("hexagon/tflite", "int8"), ("adreno/tflite", "float32")):
        assert "chips" not in compared.get(key, {})


def test_targets_and_the_fit_take_the_same_coefficients_for_a_type_without_any() -> None:
    listed = {(each["name"], each["dtype"]): each["efficiency"] for each in efficiency._profiles()}
    fitted = fitting.Fit({key: Efficiency.model_validate(each) for key, each in listed.items()})
    for name in efficiency.names():
        for dtype, coefficients in efficiency.profile(name).items():
            nearest = fitted.of((name, dtype))
            assert nearest is not None
            own = Efficiency.model_validate(coefficients)
            assert nearest.model_copy(update={"error": own.error}) == own


@pytest.mark.parametrize("text", ["", "# fitted on nothing\n", "profile = []\n"])
def test_a_file_without_profiles_is_one_line(text: str) -> None:
    with pytest.raises(NncError, match=r"^targets/profiles.toml: holds no profiles$"):
        efficiency._listed(text, "targets/profiles.toml")
