"""Files of features: whole, in parts, the same bytes each time."""

from __future__ import annotations

import gzip
import json

import pytest

from support.geojson_rules import RuleError, check_file
from wsiad.core.geometry import Box
from wsiad.exports.geojson import write_features

BOUNDS = Box(0, 0, 100, 100)


def feature(number):
    ring = [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]
    return {
        "type": "Feature",
        "id": f"00000000-0000-0000-0000-{number:012x}",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "tile", "measurements": {"wsiad: score": 1.0}},
    }


def texts(features, *, part=3):
    lines = [json.dumps(item) for item in features]
    return iter([lines[i : i + part] for i in range(0, len(lines), part)])


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("ending", ["geojson", "geojson.gz"])
def test_any_number_is_written(tmp_path, count, ending):
    path = tmp_path / f"a.{ending}"
    features = [feature(n) for n in range(count)]
    write_features(path, texts(features), bounds=BOUNDS)
    data = path.read_bytes()
    whole = json.loads(gzip.decompress(data) if ending.endswith("gz") else data)
    assert whole == {"type": "FeatureCollection", "features": features}
    assert check_file(path, bounds=BOUNDS) == features


def test_a_part_may_hold_nothing(tmp_path):
    path = tmp_path / "a.geojson"
    write_features(path, iter([[], [json.dumps(feature(0))], []]), bounds=BOUNDS)
    assert check_file(path, bounds=BOUNDS) == [feature(0)]


def test_the_origin_is_said_where_it_is_not_the_slides_corner(tmp_path):
    path = tmp_path / "a.geojson"
    bounds = Box(1344, 960.5, 100, 100)
    write_features(path, texts([feature(0)]), bounds=bounds)
    assert json.loads(path.read_text())["wsiad"] == {"origin": [1344, 960.5]}
    assert check_file(path, bounds=bounds) == [feature(0)]
    with pytest.raises(RuleError, match="origin"):
        check_file(path, bounds=BOUNDS)


def test_features_that_fail_on_the_way_leave_no_file(tmp_path):
    def features():
        yield [json.dumps(feature(0))]
        raise ZeroDivisionError

    for ending in ("geojson", "geojson.gz"):
        with pytest.raises(ZeroDivisionError):
            write_features(tmp_path / f"a.{ending}", features(), bounds=BOUNDS)
    assert not list(tmp_path.iterdir())
