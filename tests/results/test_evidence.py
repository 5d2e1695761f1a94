"""What a slide's folder says of its regions: read as if a stranger had written it."""

from __future__ import annotations

import json

import pytest

from wsiad.core.errors import ExportError
from wsiad.results.evidence_files import read_evidence, read_fields

FIELD = {
    "rank": 1, "image": "regions/001.jpg", "x": 1, "y": 2, "width": 30, "height": 40,
    "across_um": 300, "bar_um": 50, "percentile": 100,
}  # fmt: skip
REGION = {
    "rank": 2, "x": 1, "y": 2, "width": 30, "height": 40, "score": 5, "percentile": 99.5,
    "area_um2": 12.5, "mpp": 0.5, "tile": "evidence/002.jpg",
    "nearest": [{"slide": "n", "x": 3, "y": 4, "distance": 0.25, "tile": "evidence/002_h1.jpg"}],
    "reconstruction": None, "difference": "evidence/002_d.png",
}  # fmt: skip


def write(folder, name, regions, **more):
    (folder / name).write_text(json.dumps({"format": 1, "regions": regions, **more}))


def test_nothing_is_read_where_nothing_is(tmp_path):
    assert read_fields(tmp_path) == read_evidence(tmp_path) == ()


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, "regions.json", [FIELD], later="ignored")
    placeless = REGION["nearest"][0] | {"x": None, "y": None, "slide": "imported"}
    nearest = [*REGION["nearest"], placeless]
    write(tmp_path, "evidence.json", [REGION | {"later": 1, "nearest": nearest}])
    (field,) = read_fields(tmp_path)
    assert (field.rank, field.across_um, field.image) == (1, 300, tmp_path / "regions/001.jpg")
    (region,) = read_evidence(tmp_path)
    assert region.tile == tmp_path / "evidence/002.jpg"
    assert region.reconstruction is None
    assert region.difference == tmp_path / "evidence/002_d.png"
    assert [(h.slide, h.distance, h.tile.name) for h in region.nearest] == [
        ("n", 0.25, "002_h1.jpg"),
        ("imported", 0.25, "002_h1.jpg"),
    ]


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/a.jpg", "regions/../../a.jpg", "link"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "slide"
    folder.mkdir()
    (tmp_path / "outside.jpg").touch()
    (folder / "link").symlink_to(tmp_path / "outside.jpg")
    for file, values in (
        ("regions.json", FIELD | {"image": name}),
        ("evidence.json", REGION | {"tile": name}),
        ("evidence.json", REGION | {"difference": name}),
        ("evidence.json", REGION | {"nearest": [REGION["nearest"][0] | {"tile": name}]}),
    ):
        write(folder, file, [values])
        with pytest.raises(ExportError, match="leads out of the folder"):
            (read_fields if file == "regions.json" else read_evidence)(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "no json",
        '{"format": 2, "regions": []}',
        json.dumps({"format": 1, "regions": [{**FIELD, "rank": 0}]}),
        json.dumps({"format": 1, "regions": [{**FIELD, "width": 0}]}),
        json.dumps({"format": 1, "regions": [{**FIELD, "across_um": float("nan")}]}),
        json.dumps({"format": 1, "regions": [{k: v for k, v in FIELD.items() if k != "image"}]}),
    ],
)
def test_damage_is_named(tmp_path, text):
    (tmp_path / "regions.json").write_text(text)
    with pytest.raises(ExportError, match=r"regions\.json: is damaged") as caught:
        read_fields(tmp_path)
    assert "run wsiad heatmap again" in str(caught.value)
