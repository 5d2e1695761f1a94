"""Files of features: read back in parts, and refused for every fault before they are in place."""

from __future__ import annotations

import gzip
import json

import pytest

from wsiad.core.errors import ExportError
from wsiad.core.geometry import Box
from wsiad.exports import geojson as geojson_file
from wsiad.exports.geojson import check_file, write_features

BOUNDS = Box(0, 0, 100, 100)


def feature(number, *, x=0.0, score=1.0):
    ring = [[x, 0], [x + 1, 0], [x + 1, 1], [x, 1], [x, 0]]
    return {
        "type": "Feature",
        "id": f"00000000-0000-0000-0000-{number:012x}",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "tile", "measurements": {"wsiad: score": score}},
    }


def texts(features, *, part=3):
    lines = [json.dumps(item) for item in features]
    return iter([lines[i : i + part] for i in range(0, len(lines), part)])


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 9])
@pytest.mark.parametrize("ending", ["geojson", "geojson.gz"])
def test_any_number_is_written_and_counted(tmp_path, monkeypatch, count, ending):
    monkeypatch.setattr(geojson_file, "CHUNK", 4)
    path = tmp_path / f"a.{ending}"
    features = [feature(n) for n in range(count)]
    write_features(path, texts(features), bounds=BOUNDS)
    data = path.read_bytes()
    whole = json.loads(gzip.decompress(data) if ending.endswith("gz") else data)
    assert whole == {"type": "FeatureCollection", "features": features}
    assert check_file(path, bounds=BOUNDS) == count


def test_the_origin_is_said_where_it_is_not_the_slides_corner(tmp_path):
    path = tmp_path / "a.geojson"
    bounds = Box(1344, 960.5, 100, 100)
    write_features(path, texts([feature(0)]), bounds=bounds)
    assert json.loads(path.read_text())["wsiad"] == {"origin": [1344, 960.5]}
    assert check_file(path, bounds=bounds) == 1
    with pytest.raises(ExportError, match="does not begin"):
        check_file(path, bounds=BOUNDS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f.update(feature(1)), "identifier of another"),
        (lambda f: f.update(feature(6, x=99.5)), "feature 6: reaches beyond"),
        (lambda f: f.update(feature(6, score=float("nan"))), "feature 6: .*not a finite number"),
        (lambda f: f.update(id="tile 6"), "feature 6: .*no UUID"),
        (lambda f: f.pop("id"), "feature 6: has wrong keys"),
    ],
)
def test_one_bad_feature_among_many_leaves_no_file(tmp_path, monkeypatch, change, problem):
    monkeypatch.setattr(geojson_file, "CHUNK", 4)
    features = [feature(n) for n in range(9)]
    change(features[6])
    with pytest.raises(ExportError, match=problem):
        write_features(tmp_path / "a.geojson.gz", texts(features), bounds=BOUNDS)
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_not_one_feature_is_refused(tmp_path):
    for text in ('{"type":', "1", f"{json.dumps(feature(0))},{json.dumps(feature(1))}", "[]"):
        with pytest.raises(ExportError):
            write_features(tmp_path / "a.geojson", iter([[text]]), bounds=BOUNDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-3],
        lambda text: text.replace(b"},\n", b"}\n", 1),
        lambda text: text + b"[]",
        lambda text: text.replace(b"FeatureCollection", b"Collection"),
        lambda text: text.replace(b"}\n]", b"},\n]"),
        lambda text: b"",
    ],
)
def test_a_damaged_file_is_found(tmp_path, damage):
    path = tmp_path / "a.geojson"
    write_features(path, texts([feature(n) for n in range(5)]), bounds=BOUNDS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ExportError):
        check_file(path, bounds=BOUNDS)


def test_a_packed_file_that_breaks_off_is_found(tmp_path):
    path = tmp_path / "a.geojson.gz"
    write_features(path, texts([feature(n) for n in range(50)]), bounds=BOUNDS)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for bad in (whole[:-9], whole[:middle] + b"\xff\xff" + whole[middle + 2 :], b"text"):
        path.write_bytes(bad)
        with pytest.raises(ExportError):
            check_file(path, bounds=BOUNDS)
