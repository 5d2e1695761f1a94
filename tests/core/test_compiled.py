"""Words at any byte of an array, against NumPy's own view of the same bytes."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

from wsiad.core.compiled import (
    BLOCK,
    CODE,
    GROUP,
    byte_products,
    compiled,
    kept_in,
    load_word,
    mean_of_3,
    mean_of_4,
    mean_of_5,
    multiplies_bytes,
    prefetch,
    store_word,
)
from wsiad.verbs.doctor import NOTE, OK, _compiled


@compiled
def loaded(values, start):
    return load_word(values, start)


@compiled
def stored(values, start, word):
    store_word(values, start, word)


@pytest.mark.parametrize("start", range(5))
def test_words_lie_at_any_byte(start):
    values = np.random.default_rng(start).integers(0, 256, 9, dtype=np.uint8)
    expected = int.from_bytes(values[start : start + 4].tobytes(), "little")
    assert loaded(values, start) == expected
    assert load_word.py_func(values, start) == expected
    word = 0x0403_0201 + 0xF0
    written = values.copy()
    stored(written, start, np.uint32(word))
    assert written[start : start + 4].tobytes() == word.to_bytes(4, "little")
    untouched = np.r_[:start, start + 4 : 9]
    assert np.array_equal(written[untouched], values[untouched])


def test_words_of_a_part_are_of_that_part():
    values = np.arange(16, dtype=np.uint8)
    stored(values[3:], 2, np.uint32(0))
    assert np.flatnonzero(values == 0).tolist() == [0, 5, 6, 7, 8]


def test_an_element_is_fetched_by_an_instruction_that_reads_nothing():
    fetch = prefetch.made()

    @numba.njit
    def summed(values, ahead):
        total = 0
        for at in range(len(values)):
            fetch(values, np.uintp(at + ahead))
            total += values[at]
        return total

    values = np.arange(100, dtype=np.uint32)
    for ahead in (0, 64, 1 << 40):  # far beyond the array, too
        assert summed(values, ahead) == 4950
    (code,) = summed.inspect_llvm().values()
    assert "call void @llvm.prefetch" in code
    assert prefetch(values, np.uintp(3)) is None


@pytest.mark.parametrize(("taps", "mean"), [(3, mean_of_3), (4, mean_of_4), (5, mean_of_5)])
def test_a_weighted_mean_takes_all_channels_of_pixels_that_follow_one_another(taps, mean):
    made = mean.made()

    @numba.njit
    def written(sums, weights, means):
        made(sums, np.uintp(6), weights, np.uintp(2), means, np.uintp(3))

    rng = np.random.default_rng(taps)
    sums = rng.random(40).astype(np.float32)
    weights = rng.random(9).astype(np.float32)
    means = np.full(10, 7, np.float32)
    written(sums, weights, means)
    pixels = sums[6 : 6 + 3 * taps].reshape(taps, 3)
    expected = weights[2] * pixels[0]
    for tap in range(1, taps):
        expected = expected + weights[2 + tap] * pixels[tap]
    np.testing.assert_array_equal(means[3:6], expected)
    assert (means[[0, 1, 2, 7, 8, 9]] == 7).all()  # the seventh is the next pixel's
    again = np.full(10, 7, np.float32)
    mean(sums, np.uintp(6), weights, np.uintp(2), again, np.uintp(3))
    np.testing.assert_array_equal(again, means)


@compiled
def multiplied(codes, rows, blocks, sums, block, least, out):
    return byte_products(codes, rows, blocks, sums, np.uintp(block), least, out)


@pytest.mark.skipif(not multiplies_bytes(), reason="this processor has no such instruction")
@pytest.mark.parametrize("largest", [False, True])
def test_products_of_bytes_are_exact(largest):
    """Also of the largest, whose sums other instructions cut off at 32,767."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (20, CODE)).astype(np.int8)
    others = rng.integers(0, 256, (3 * BLOCK, CODE)).astype(np.uint8)
    if largest:
        codes[::2], others[::3] = 127, 255
        codes[1::4], others[1::3] = -127, 255
    sums = rng.integers(-(1 << 20), 1 << 20, 3 * BLOCK).astype(np.int32)
    fours = others.reshape(3, BLOCK, CODE // 4, 4).transpose(0, 2, 1, 3)
    given = (
        codes.reshape(-1),
        rng.permutation(20)[:GROUP],
        np.ascontiguousarray(fours).reshape(-1),
    )
    right = codes[given[1]].astype(np.int64) @ others[BLOCK : 2 * BLOCK].T.astype(np.int64)
    right += sums[BLOCK : 2 * BLOCK]
    least = np.quantile(right, 0.9, axis=1).astype(np.int32)
    least[2] = 1 << 30
    reached = (right >= least[:, None]).any(axis=0)
    assert 0 < reached.sum() < BLOCK
    for function in (multiplied, byte_products):
        out = np.zeros(GROUP * BLOCK + 1, np.int32)
        bits = function(*given, sums, np.uintp(1), least, out[:-1])
        np.testing.assert_array_equal(out[:-1].reshape(GROUP, BLOCK), right)
        assert out[-1] == 0
        assert bits == sum(1 << int(column) for column in np.flatnonzero(reached))


MODULE = """
import sys

sys.modules.pop("numba", None)
from wsiad.core.compiled import compiled, load_word
import numpy as np

@compiled
def part(values):
    return values.sum() + load_word(values, 1)

@compiled
def whole(values):
    return 2 * part(values)

late = "numba" not in sys.modules
found = whole(np.arange(8, dtype=np.uint8))
hits = sum(whole.made().stats.cache_hits.values())
print(late, found == 2 * (28 + 0x04030201), hits)
"""


def test_functions_are_compiled_at_the_first_call_and_kept_for_other_processes(tmp_path):
    (tmp_path / "work.py").write_text(MODULE)
    code = [sys.executable, "-c", "import work"]
    where = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    said = [
        subprocess.run(
            code, env={**where, "PYTHONPATH": path}, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [["True", "True", "0"], ["True", "True", "1"]]


def test_where_nothing_can_be_kept_each_process_compiles(monkeypatch):
    whole = numba.njit

    def nowhere(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return whole(**options)

    monkeypatch.setattr(numba, "njit", nowhere)

    @compiled
    def inverse(value):
        return 1 / value

    monkeypatch.setattr("wsiad.core.compiled.load_word", inverse)
    assert kept_in() is None
    (check,) = _compiled()
    assert check.state == NOTE
    assert "NUMBA_CACHE_DIR" in check.remedy
    assert inverse(4.0) == 0.25
    assert inverse(0.0) == np.inf  # as in NumPy
    assert inverse.__name__ == "inverse"


def test_threads_that_come_at_once_get_one_function():
    @compiled
    def doubled(value):
        return value + value

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(doubled, range(8))) == [2 * value for value in range(8)]
    assert doubled.made() is doubled.made()


def test_the_place_of_what_is_kept_is_told():
    folder = kept_in()
    assert folder is not None
    assert Path(folder).name == "__pycache__" or os.environ.get("NUMBA_CACHE_DIR", "") in folder
    (check,) = _compiled()
    assert (check.state, check.finding) == (OK, f"kept in {folder}")
