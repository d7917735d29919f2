"""Sliding windows: tiles cover a row once, and know exactly which columns and rows read inside of the image."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nnc.lowering.kernels.window import Window


@st.composite
def windows(draw: st.DrawFn) -> Window:
    size, kernel, strides, dilations, origin, out = [], [], [], [], [], []
    for _ in range(2):
        length, taps = draw(st.integers(1, 30)), draw(st.integers(1, 5))
        stride, dilation, before = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 4))
        after = draw(st.integers(0, 4))
        steps = length + before + after - (taps - 1) * dilation - 1
        size.append(length)
        kernel.append(taps)
        strides.append(stride)
        dilations.append(dilation)
        origin.append(before)
        out.append(max(0, steps) // stride + 1)
    return Window(*(tuple(each) for each in (size, kernel, strides, dilations, origin, out)))  # type: ignore[arg-type]


@given(windows(), st.integers(1, 9))
def test_tiles_cover_a_row_and_read_inside(window: Window, columns: int) -> None:
    place = 0
    for tiles in window.tiles(columns):
        assert tiles.first == place
        assert 1 <= tiles.columns <= columns
        for tile in range(tiles.count):
            first = tiles.first + tile * tiles.columns
            for kw, (start, end) in enumerate(tiles.inside):
                for c in range(tiles.columns):
                    inside = 0 <= window.column(first + c, kw) < window.size[1]
                    assert inside == (start <= c < end)
        place += tiles.columns * tiles.count
    assert place == window.out_size[1]


@given(windows(), st.integers(1, 9))
def test_taps_and_readers_are_the_same_products(window: Window, columns: int) -> None:
    for tiles in window.tiles(columns):
        products = {(c, kw) for kw, span in enumerate(tiles.inside) for c in range(*span)}
        runs = [
            (c, kw)
            for tap in tiles.taps()
            for kw in range(tap.first, tap.first + tap.count)
            for c in range(*tap.inside)
        ]
        readers = [(c, kw) for column in tiles.readers(window).values() for c, kw in column]
        assert sorted(runs) == sorted(readers) == sorted(products)


@given(windows())
def test_rows_are_those_inside_of_the_image(window: Window) -> None:
    for y in range(window.out_size[0]):
        first, last = (int(each) for each in window.rows(y))
        inside = [kh for kh in range(window.kernel[0]) if 0 <= window.row(y, kh) < window.size[0]]
        assert list(range(first, last)) == inside
