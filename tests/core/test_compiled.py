"""Words at any byte of an array, against NumPy's own view of the same bytes."""

import numpy as np
import pytest

from wsiad.core.compiled import compiled, load_word, store_word


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
