"""inflate.c against zlib: whatever zlib writes is read, what zlib refuses is refused, and no byte beyond is touched."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc.lowering import cross

SOURCE = Path(str(resources.files("nnc.lowering").joinpath("inflate.c")))
STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED)
GUARD = 0xA5

Inflate = Callable[..., "tuple[int | None, bytes]"]


@pytest.fixture(scope="module")
def inflate(tmp_path_factory: pytest.TempPathFactory) -> Inflate:
    """Decodes a stream to (where it ends or None, what came out); fails where something else was written."""
    path = tmp_path_factory.mktemp("inflate") / "inflate.so"
    cross.run([*cross.compiler(platform.machine()), "-std=c11", "-O2", "-shared", "-fPIC", SOURCE, "-o", path])
    function = ctypes.CDLL(str(path)).nnc_inflate
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

    def run(stream: bytes, count: int, stride: int = 1) -> tuple[int | None, bytes]:
        source = np.frombuffer(stream + b"\0", np.uint8)
        start = source.ctypes.data
        memory = np.full(64 + count * stride + 64, GUARD, np.uint8)
        end = function(start, start + len(stream), memory.ctypes.data + 64, count, stride)
        written = np.zeros(len(memory), bool)
        written[64 : 64 + count * stride : stride] = True
        assert (memory[~written] == GUARD).all()
        return None if end is None else end - start, memory[written].tobytes()

    return run


def deflated(content: bytes, level: int = 6, strategy: int = 0, memory: int = 8, window: int = 15) -> bytes:
    coder = zlib.compressobj(level, zlib.DEFLATED, window, memory, strategy)
    return coder.compress(content) + coder.flush()


def reference(stream: bytes, count: int) -> tuple[int, bytes] | None:
    """What zlib makes of the start of a stream; None where it refuses it, or where it is not as long."""
    decoder = zlib.decompressobj()
    try:
        content = decoder.decompress(stream)
    except zlib.error:
        return None
    whole = decoder.eof and len(content) == count
    return (len(stream) - len(decoder.unused_data), content) if whole else None


skewed = st.builds(
    lambda seed, count, spread: np.random.default_rng(seed).normal(0, spread, count).astype(np.int8).tobytes(),
    st.integers(0, 2**32),
    st.integers(0, 5000),
    st.floats(0.1, 40),
)
contents = (
    st.binary(max_size=300) | skewed | st.builds(lambda part, n: part * n, st.binary(max_size=20), st.integers(0, 90))
)
options = st.tuples(st.integers(0, 9), st.sampled_from(STRATEGIES), st.integers(1, 9), st.integers(9, 15))


@settings(max_examples=300, deadline=None)
@given(contents, options, st.integers(1, 8), st.binary(max_size=9))
def test_reads_what_zlib_writes(
    inflate: Inflate, content: bytes, options: tuple[int, int, int, int], stride: int, behind: bytes
) -> None:
    stream = deflated(content, *options)
    assert inflate(stream + behind, len(content), stride) == (len(stream), content)


@settings(max_examples=600, deadline=None)
@given(contents, options, st.data())
def test_refuses_what_zlib_refuses(
    inflate: Inflate, content: bytes, options: tuple[int, int, int, int], data: st.DataObject
) -> None:
    stream = bytearray(deflated(content, *options))
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bytes(stream[: data.draw(st.integers(0, len(stream)) | st.just(len(stream)))])
    end, found = inflate(damaged, len(content))
    expected = reference(damaged, len(content))
    assert (end is None) == (expected is None)
    assert expected is None or (end, found) == expected


@pytest.mark.parametrize("content", [b"", b"x", bytes(70_000), np.random.default_rng(0).bytes(200_000)])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("level", [0, 1, 9])
def test_sizes_beyond_a_block(inflate: Inflate, content: bytes, strategy: int, level: int) -> None:
    stream = deflated(content, level, strategy)
    assert inflate(stream, len(content)) == (len(stream), content)


def test_codes_longer_than_the_table(inflate: Inflate) -> None:
    counts = [1, 1]
    while len(counts) < 20:
        counts.append(counts[-1] + counts[-2])  # Fibonacci's numbers have the longest codes
    content = b"".join(bytes([symbol]) * count for symbol, count in enumerate(counts))
    content = np.random.default_rng(0).permutation(np.frombuffer(content, np.uint8)).tobytes()
    stream = deflated(content, strategy=zlib.Z_HUFFMAN_ONLY, memory=9)
    assert inflate(stream, len(content)) == (len(stream), content)


def test_other_sizes_than_the_streams(inflate: Inflate) -> None:
    for content in (b"abcabcabcabc" * 9, np.random.default_rng(0).bytes(100)):
        stream = deflated(content)
        for count in (0, 1, len(content) - 1, len(content) + 1):
            assert inflate(stream, count)[0] is None


def test_headers_that_are_not_zlibs(inflate: Inflate) -> None:
    content = b"content" * 5
    stream = deflated(content)
    raw = zlib.compressobj(wbits=-15)
    gzip = zlib.compressobj(wbits=31)
    dictionary = zlib.compressobj(zdict=b"content")
    for coder in (raw, gzip, dictionary):
        assert inflate(coder.compress(content) + coder.flush(), len(content))[0] is None
    assert inflate(b"\x00" + stream[1:], len(content))[0] is None
    assert inflate(stream[:-1] + bytes([stream[-1] ^ 1]), len(content))[0] is None


# Blocks that no encoder writes, as bits: the fields in order, each lowest bit first, but codes highest first.
HEADER = b"\x78\x9c"


def bits(*fields: tuple[int, int]) -> bytes:
    """The bytes of (value, count of bits) fields, lowest bit first."""
    value = place = 0
    for field, count in fields:
        value, place = value | field << place, place + count
    return HEADER + value.to_bytes((place + 7) // 8, "little")


def dynamic(lengths: dict[int, int], *coded: tuple[int, int], literals: int = 257, distances: int = 1) -> bytes:
    """A last block with dynamic codes: `lengths` of the code of code lengths, and what follows."""
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    head = [(1, 1), (2, 2), (literals - 257, 5), (distances - 1, 5), (15, 4)]
    return bits(*head, *((lengths.get(symbol, 0), 3) for symbol in order), *coded)


@pytest.mark.parametrize(
    "stream",
    [
        bits((1, 1), (3, 2)),  # a kind that is none
        bits((1, 1), (0, 2), (0, 5), (4, 16), (4, 16), (0, 32)),  # lengths that contradict each other
        bits((1, 1), (1, 2), (0b1100011, 8), (0, 40)),  # the fixed code of 286, which stands for no length
        bits((1, 1), (1, 2), (0b1000000, 7), (0, 5), (0, 40)),  # a copy from before the start
        dynamic({0: 1, 1: 1, 2: 1}),  # three codes of one bit
        dynamic({0: 2, 1: 2, 2: 2}, (0, 64)),  # a code of code lengths with a gap
        dynamic({}, (0, 64)),  # no code of code lengths
        dynamic({16: 1, 0: 1}, (0xFFFF, 16), (0, 64)),  # a repetition of nothing
        dynamic({18: 1, 0: 1}, *[(0b11111111, 8)] * 40),  # more lengths than there are
        dynamic({0: 1, 1: 1}, *[(0, 1)] * 256, (0, 1), (0, 1), (0, 64)),  # no end of the block
        dynamic({0: 1, 1: 1}, (0, 64), literals=287),
        dynamic({0: 1, 1: 1}, (0, 64), distances=31),
    ],
)
def test_blocks_that_are_none(inflate: Inflate, stream: bytes) -> None:
    with pytest.raises(zlib.error):
        zlib.decompress(stream + bytes(600))
    for count in (0, 1, 64):
        assert inflate(stream + bytes(600), count)[0] is None


def test_a_block_that_ends_at_once(inflate: Inflate) -> None:
    """The only code is that of the end, of one bit: 138 and 118 times no length, one of 1, and none of distances."""
    stream = dynamic({18: 1, 1: 2, 0: 2}, (0, 1), (127, 7), (0, 1), (107, 7), (0b11, 2), (0b01, 2), (0, 1))
    stream += zlib.adler32(b"").to_bytes(4, "big")
    assert zlib.decompress(stream) == b""
    assert inflate(stream, 0) == (len(stream), b"")


# -- in a process that watches its memory

DRIVER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

const uint8_t* nnc_inflate(const uint8_t*, const uint8_t*, uint8_t*, size_t, size_t);

int main(void) {
  uint32_t sizes[3];  // of the stream, of what it holds, between its bytes
  while (fread(sizes, sizeof *sizes, 3, stdin) == 3) {
    size_t length = sizes[1] ? (sizes[1] - 1) * (size_t)sizes[2] + 1 : 0;
    uint8_t *stream = malloc(sizes[0]), *target = malloc(length);
    if (fread(stream, 1, sizes[0], stdin) != sizes[0]) return 2;
    putchar(nnc_inflate(stream, stream + sizes[0], target, sizes[1], sizes[2]) ? '1' : '0');
    free(stream);
    free(target);
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver with sanitizers; skips where the compiler has none."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "driver.c").write_text(DRIVER)
    compiler = shutil.which("cc")
    flags = ["-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compiler or "cc", *flags, folder / "driver.c", SOURCE, "-o", folder / "driver"]
    if compiler is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no compiler with -fsanitize=address,undefined")
    return folder / "driver"


def test_nothing_else_is_touched(watched: Path) -> None:
    rng = np.random.default_rng(0)
    fed, expected = [], ""
    for _ in range(4000):
        content = rng.normal(0, rng.uniform(0.2, 40), rng.integers(0, 700)).astype(np.int8).tobytes()
        content *= int(rng.integers(1, 4))
        strategy, window = int(rng.choice(STRATEGIES)), int(rng.integers(9, 16))
        stream = bytearray(deflated(content, int(rng.integers(0, 10)), strategy, int(rng.integers(1, 10)), window))
        for _ in range(rng.integers(0, 3)):
            stream[rng.integers(2, len(stream))] ^= 1 << rng.integers(0, 8)
        cut = bytes(stream[: rng.integers(0, len(stream) + 1)]) if rng.random() < 0.3 else bytes(stream)
        count = len(content) if rng.random() < 0.9 else int(rng.integers(0, 2 * len(content) + 1))
        sizes = np.array([len(cut), count, rng.integers(1, 9)], np.uint32)
        fed.append(sizes.tobytes() + cut)
        expected += "01"[reference(cut, count) is not None]
    done = subprocess.run([watched], input=b"".join(fed), capture_output=True)
    assert done.stderr.decode() == ""
    assert done.stdout.decode() == expected
    assert {"0", "1"} == set(expected)
