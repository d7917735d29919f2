"""Figures as people read them."""

import pytest

from nnc.display import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.size(0), "0 B"),
        (units.size(999), "999 B"),
        (units.size(1000), "1.00 kB"),
        (units.size(14_102_938), "14.1 MB"),
        (units.size(999_600), "1.00 MB"),
        (units.size(553_000_000), "553 MB"),
        (units.size(2.5e15), "2500 TB"),
        (units.size(None), "-"),
        (units.amount(12), "12"),
        (units.amount(3_504_872), "3.50 M"),
        (units.cache(49_152), "48 KiB"),
        (units.cache(2_097_152), "2 MiB"),
        (units.milliseconds(0), "0 ms"),
        (units.milliseconds(0.0137), "13.7 us"),
        (units.milliseconds(21.44), "21.4 ms"),
        (units.milliseconds(2300), "2.30 s"),
        (units.seconds(75.4), "1 min 15 s"),
        (units.seconds(0.0124), "12.4 ms"),
        (units.millijoules(None), "-"),
        (units.percent(0.8716), "87.2 %"),
        (units.times(3.917), "3.92x"),
        (units.shape([1, 64, 56, 56]), "1x64x56x56"),
        (units.shape([]), "scalar"),
        (units.plural(1, "pass"), "1 pass"),
        (units.plural(2, "pass"), "2 passes"),
        (units.plural(0, "layer"), "0 layers"),
        (units.digits(99.96), "100"),
        (units.digits(9.996), "10.0"),
        (units.digits(-0.5), "-0.500"),
        (units.digits(0.00012), "0.0001"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert text == expected
