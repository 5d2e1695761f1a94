"""evaluation.json and significance.json, read back: sound ones whole, damaged ones in one line."""

from __future__ import annotations

import copy
import json

import pytest

from wsiad.core.errors import InputError
from wsiad.results.records import read_evaluation, read_significance

FROC = {"score": 0.5, "low": 0.4, "high": 0.6, "sensitivity_at": {"0.25": 0.5, "8": 1.0}}
EVALUATION = {
    "slides": [{"slide": "a", "label": "tumor", "froc": {"camelyon16": {"lesions": 2}}}],
    "slide_auc": {"value": 0.9, "low": 0.8, "high": None, "undefined": ""},
    "tile_auroc": {"value": 0.9, "by_share": {"value": 0.8, "low": 0.7}},
    "froc": {"camelyon16": FROC, "guarded": None},
    "unscored": {"text": "1 slide has no score"},
    "notes": ["a note"],
    "group_by": "centre",
    "groups": {"1": {"froc": {"camelyon16": FROC}, "slide_auc": {"value": None}}},
}
SIGNIFICANCE = {
    "slides": {"a": {"p_slide": 0.5, "q_slide": 1.0}},
    "warnings": [],
    "reference": {"slides": 5, "smallest_p": 1 / 6},
    "false_alarms": [{"text": "1 of 5"}],
}
CASES = [
    (read_evaluation, "evaluation.json", EVALUATION, path, value)
    for path, value in [
        (("slides",), {"a": 1}),
        (("slides", 0, "slide"), 7),
        (("slides", 0, "froc", "camelyon16", "lesions"), -1),
        (("slide_auc", "value"), "0.9"),
        (("tile_auroc", "by_share", "low"), True),
        (("froc", "camelyon16", "score"), "high"),
        (("froc", "camelyon16", "sensitivity_at", "8"), 1.5),
        (("groups", "1", "froc"), []),
        (("groups", "1", "slide_auc", "value"), [1]),
        (("group_by",), None),
        (("notes",), "a note"),
    ]
] + [
    (read_significance, "significance.json", SIGNIFICANCE, path, value)
    for path, value in [
        (("slides",), ["a"]),
        (("slides", "a", "p_slide"), 2),
        (("warnings",), None),
        (("reference", "smallest_p"), "small"),
        (("false_alarms", 0), {}),
    ]
]


def write(path, values):
    path.write_text(json.dumps(values))


def test_what_was_found_is_read_back_whole(tmp_path):
    assert read_evaluation(tmp_path) is None
    assert read_significance(tmp_path) is None
    write(tmp_path / "evaluation.json", EVALUATION)
    write(tmp_path / "significance.json", SIGNIFICANCE)
    assert read_evaluation(tmp_path) == EVALUATION
    assert read_significance(tmp_path) == SIGNIFICANCE


@pytest.mark.parametrize(("read", "name", "sound", "path", "value"), CASES)
def test_what_was_damaged_is_named_with_its_remedy(tmp_path, read, name, sound, path, value):
    values = inner = copy.deepcopy(sound)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write(tmp_path / name, values)
    with pytest.raises(InputError, match=f"{name}: is damaged: .* or delete it") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b"[" * 10_000, b'{"slide_auc": {"value": NaN}}']
)
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(InputError, match=r"evaluation\.json.*or delete it"):
        read_evaluation(tmp_path)
