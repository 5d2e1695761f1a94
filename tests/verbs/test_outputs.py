"""Verbs try where they write before they work."""

from pathlib import Path

import pytest

import wsiad
from wsiad.cli import main
from wsiad.core.errors import InputError


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--out"],
        ["tile", "slides", "--mpp", "0.5", "--tile", "32", "--out"],
        ["tile", "slides", "--mpp", "0.5", "--tile", "32", "--out", "store", "--record"],
        ["train", "store", "--detector", "knn", "--out"],
        ["pretrain", "store", "--out"],
        ["heatmap", "run", "slides", "--out"],
        ["evaluate", "results", "--reference", "r.csv", "--out"],
        ["compare", "a", "b", "--reference", "r.csv", "--out"],
        ["score-tiles", "run", "store", "--out"],
        ["suggest", "results", "--out"],
        ["export-tiles", "store", "--out"],
        ["embed", "store", "--h5"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_verb_tries_its_output_before_its_input(tmp_path, monkeypatch, capsys, words):
    """None of the inputs is there: each verb would say so next."""
    monkeypatch.chdir(tmp_path)
    path = "/proc/wsiad.json" if words[-1] == "--record" else "/proc/wsiad/out"
    assert main([*words, path]) == 1
    assert f"wsiad {words[0]}: /proc: cannot be written to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_record_whose_name_is_too_long_is_refused_at_once(tmp_path):
    long = tmp_path / f"{'r' * 300}.json"
    with pytest.raises(InputError, match="file name too long"):
        wsiad.tile(slides="gone", out=tmp_path / "store", mpp=1, tile=32, record=long)
    assert list(tmp_path.iterdir()) == []
