"""Cores that rows of measurements name."""

from nnc.simulation import cores


def test_clocks_of_rows_are_taken_as_they_are() -> None:
    """The bounds of target files are no reason to stop at a row that gives megahertz."""
    core = cores.find("cpu", "Cortex-A72")
    assert core is not None
    assert core.cluster(4, 1500.0).clock_ghz == 1500
    assert core.cluster(4, 1500.0).picojoule_per_mac is None
