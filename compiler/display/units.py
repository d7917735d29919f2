"""Figures as people read them: three digits and a unit."""

import math


def size(count: float | None) -> str:
    """14102938 -> '14.1 MB' (decimal, as disks and file managers count)."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def cache(count: int) -> str:
    """49152 -> '48 KiB': caches come in powers of two."""
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"


def amount(count: float | None) -> str:
    """3504872 -> '3.50 M'."""
    return _scaled(count, ("", "k", "M", "G", "T"))


def milliseconds(value: float | None) -> str:
    """21.4 -> '21.4 ms', 0.0137 -> '13.7 us', 2300 -> '2.30 s'."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{digits(value / 1000)} s"
    return f"{digits(value)} ms" if value >= 0.1 or not value else f"{digits(value * 1000)} us"


def seconds(value: float) -> str:
    """0.0124 -> '12.4 ms', 75 -> '1 min 15 s'."""
    if value >= 60:
        return f"{int(value) // 60} min {int(value) % 60} s"
    return milliseconds(value * 1000)


def millijoules(value: float | None) -> str:
    return "-" if value is None else f"{digits(value)} mJ"


def percent(share: float | None) -> str:
    """0.872 -> '87.2 %'."""
    return "-" if share is None else f"{share * 100:.1f} %"


def times(ratio: float | None) -> str:
    """3.917 -> '3.92x'."""
    return "-" if ratio is None else f"{digits(ratio)}x"


def shape(sizes: list[int] | tuple[int, ...]) -> str:
    """[1, 64, 56, 56] -> '1x64x56x56'."""
    return "x".join(map(str, sizes)) or "scalar"


def plural(count: int, noun: str) -> str:
    """(1, 'place') -> '1 place', (2, 'pass') -> '2 passes'."""
    return f"{count} {noun if count == 1 else plural_form(noun)}"


def plural_form(noun: str) -> str:
    return f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"


def digits(value: float) -> str:
    """Three significant digits, without an exponent: '0.0123', '1.23', '12.3', '123', '1234'."""
    if not value:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value) * 1.0005))  # 9.996 is written as 10.0
    return f"{value:.{min(max(decimals, 0), 4)}f}"


def _scaled(count: float | None, units: tuple[str, ...]) -> str:
    if count is None:
        return "-"
    step = 0
    while abs(count) >= 999.5 and step < len(units) - 1:
        count, step = count / 1000, step + 1
    return f"{digits(count) if step else count} {units[step]}".rstrip()
