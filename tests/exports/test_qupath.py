"""GeoJSON against QuPath's rules: the published schema, and each rule broken in turn."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import itertools
import json
import tracemalloc
import uuid
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import shapely

from support.geojson_rules import RuleError, check_collection, check_feature, check_file
from wsiad.annotations import read_annotations
from wsiad.core.errors import ExportError
from wsiad.core.geometry import Box, PixelMap, Size, Spacing
from wsiad.exports.qupath import write_lesions, write_tiles, write_unassessed
from wsiad.exports.qupath.objects import add_measurements
from wsiad.heatmaps.regions import find_regions
from wsiad.heatmaps.score_map import Heatmap, WindowScores

SCHEMA = Path(__file__).parents[3] / "shared" / "reference" / "qupath_geojson.schema.json"
BOUNDS = Box(1000.0, 500.0, 4000.0, 3000.0)


def windows_of(count, *, edge=64.0, columns=60, seed=0):
    index = np.arange(count)
    boxes = np.empty((count, 4))
    boxes[:, 0] = BOUNDS.x + index % columns * edge
    boxes[:, 1] = BOUNDS.y + index // columns * edge
    boxes[:, 2:] = edge
    rng = np.random.default_rng(seed)
    scores = rng.gamma(3, size=count).astype(np.float32)
    return WindowScores(
        boxes=boxes, scores=scores, percentiles=(rng.random(count) * 100).astype(np.float32)
    )


def regions_of(density=0.6, shape=(24, 32)):
    scores = np.random.default_rng(3).random(shape).astype(np.float32)
    heatmap = Heatmap(
        slide="a",
        scores=scores,
        placement=PixelMap(995.3, 490.7, 130.13, 127.91),
        slide_size=Size(9000, 9000),
        bounds=BOUNDS,
        spacing=Spacing(0.25, 0.25),
    )
    return find_regions(heatmap, threshold=1 - density).kept


def read(path):
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def check_schema(collection):
    if SCHEMA.exists():
        jsonschema.validate(collection, json.loads(SCHEMA.read_text()))


@pytest.fixture
def tiles(tmp_path):
    path = tmp_path / "tiles.geojson.gz"
    write_tiles(windows_of(200), path, slide="a", bounds=BOUNDS)
    return read(path)


@pytest.fixture
def lesions(tmp_path):
    path = tmp_path / "lesions.geojson"
    write_lesions(regions_of(), path, slide="a", bounds=BOUNDS)
    return read(path)


@pytest.mark.skipif(not SCHEMA.exists(), reason="the schema is not at hand")
def test_both_files_fit_the_schema_of_the_importer(tiles, lesions):
    check_schema(tiles)
    check_schema(lesions)


def test_both_files_keep_the_rules_of_the_importer(tiles, lesions, tmp_path):
    assert check_file(tmp_path / "tiles.geojson.gz", bounds=BOUNDS) == tiles["features"]
    assert check_file(tmp_path / "lesions.geojson", bounds=BOUNDS) == lesions["features"]


def test_tiles_are_squares_from_the_corner_of_the_bounds(tiles):
    windows = windows_of(200)
    assert len(tiles["features"]) == 200
    for feature, box, score, percentile in zip(
        tiles["features"], windows.boxes, windows.scores, windows.percentiles, strict=True
    ):
        x, y = box[0] - 1000, box[1] - 500
        assert feature["geometry"]["coordinates"] == [
            [[x, y], [x + 64, y], [x + 64, y + 64], [x, y + 64], [x, y]]
        ]
        assert feature["properties"]["objectType"] == "tile"
        measured = feature["properties"]["measurements"]
        assert np.float32(measured["wsiad: score"]) == score
        assert np.float32(measured["wsiad: percentile"]) == percentile


def test_positions_are_rounded_to_what_qupath_keeps_and_meet_their_neighbours(tmp_path):
    scale = 64 * 0.4862 / 0.2431
    boxes = np.array([[1000.123 + i * scale, 500.456, scale, scale] for i in range(20)])
    ones = np.ones(20, np.float32)
    path = tmp_path / "tiles.geojson"
    write_tiles(WindowScores(boxes, ones, ones), path, slide="a", bounds=BOUNDS)
    squares = [feature["geometry"]["coordinates"][0] for feature in read(path)["features"]]
    for i, square in enumerate(squares):
        assert square[0] == pytest.approx([0.123 + i * scale, 0.456], abs=0.00501)
        assert all(value == round(value, 2) for point in square for value in point)
    for left, right in itertools.pairwise(squares):
        assert left[1] == right[0]


def test_scores_that_are_missing_are_left_out(tmp_path):
    windows = WindowScores(
        boxes=windows_of(3).boxes,
        scores=np.float32([1, np.nan, np.nan]),
        percentiles=np.float32([np.nan, 2, np.nan]),
    )
    path = tmp_path / "tiles.geojson"
    write_tiles(windows, path, slide="a", bounds=BOUNDS)
    collection = read(path)
    check_schema(collection)
    assert [feature["properties"]["measurements"] for feature in collection["features"]] == [
        {"wsiad: score": 1.0},
        {"wsiad: percentile": 2.0},
        {},
    ]


def test_tiles_are_cut_off_at_the_bounds(tmp_path):
    boxes = np.array(
        [[990.0, 490, 20, 20], [4990, 3490, 20, 20], [900, 500, 100, 20], [5000, 500, 9, 9]]
    )
    ones = np.ones(4, np.float32)
    path = tmp_path / "tiles.geojson"
    count = write_tiles(WindowScores(boxes, ones, ones), path, slide="a", bounds=BOUNDS)
    collection = read(path)
    assert count == len(collection["features"]) == 2  # the others lie outside
    check_collection(collection, bounds=BOUNDS)
    corners = [feature["geometry"]["coordinates"][0][2] for feature in collection["features"]]
    assert corners == [[10, 10], [4000, 3000]]


def test_identifiers_depend_on_slide_and_square_only(tmp_path):
    ids = {}
    for name, slide, seed in [("a", "s", 0), ("b", "s", 1), ("c", "t", 0)]:
        path = tmp_path / f"{name}.geojson"
        write_tiles(windows_of(50, seed=seed), path, slide=slide, bounds=BOUNDS)
        ids[name] = [feature["id"] for feature in read(path)["features"]]
    assert ids["a"] == ids["b"]
    assert not set(ids["a"]) & set(ids["c"])
    assert len(set(ids["a"])) == 50
    assert {uuid.UUID(text).version for text in ids["a"]} == {5}


def test_equal_windows_give_equal_bytes(tmp_path):
    for name in ("a.geojson.gz", "b.geojson.gz"):
        write_tiles(windows_of(500), tmp_path / name, slide="a", bounds=BOUNDS)
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()


def test_no_windows_are_an_empty_collection(tmp_path):
    path = tmp_path / "tiles.geojson.gz"
    assert write_tiles(windows_of(0), path, slide="a", bounds=BOUNDS) == 0
    origin = {"origin": [BOUNDS.x, BOUNDS.y]}
    assert read(path) == {"type": "FeatureCollection", "wsiad": origin, "features": []}


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.boxes.__setitem__((3, 0), np.nan),
        lambda w: w.boxes.__setitem__((3, 2), 0.0),
        lambda w: w.boxes.__setitem__((3, 3), -1.0),
        lambda w: w.boxes.__setitem__(3, w.boxes[4]),
        lambda w: w.scores.__setitem__(3, np.inf),
        lambda w: w.percentiles.__setitem__(3, -np.inf),
    ],
)
def test_bad_windows_are_refused_and_leave_no_file(tmp_path, change):
    windows = windows_of(10)
    change(windows)
    with pytest.raises(ExportError):
        write_tiles(windows, tmp_path / "tiles.geojson.gz", slide="a", bounds=BOUNDS)
    assert not list(tmp_path.iterdir())


def test_endings_that_qupath_passes_over_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"\.geojson"):
        write_tiles(windows_of(1), tmp_path / "tiles.txt", slide="a", bounds=BOUNDS)
    assert not list(tmp_path.iterdir())


def test_lesions_are_locked_annotations_of_a_coloured_class(lesions):
    regions = regions_of()
    assert len(lesions["features"]) == len(regions) > 3
    for rank, (feature, region) in enumerate(zip(lesions["features"], regions, strict=True), 1):
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["isLocked"] is True
        assert properties["name"] == f"wsiad {rank}"
        assert properties["classification"] == {"name": "Anomaly", "color": [200, 0, 0]}
        measured = properties["measurements"]
        assert measured["wsiad: max score"] == region.max_score
        assert measured["wsiad: mean score"] == region.mean_score
        assert measured["wsiad: area µm^2"] == region.area
        rings = feature["geometry"]["coordinates"]
        polygon = shapely.Polygon(rings[0], rings[1:])
        moved = shapely.transform(region.polygon, lambda points: points - (1000, 500))
        assert polygon.hausdorff_distance(moved) < 0.01
        assert len(polygon.interiors) == len(region.polygon.interiors)
    assert any(len(feature["geometry"]["coordinates"]) > 1 for feature in lesions["features"])


def test_outlines_are_read_back_where_they_lie_on_the_slide(tmp_path):
    path = tmp_path / "lesions.geojson"
    regions = regions_of()
    write_lesions(regions, path, slide="a", bounds=BOUNDS)
    add_measurements(path, [{"wsiad: p": 0.5}] * len(regions))  # which keep the origin
    drawn = shapely.union_all([region.polygon for region in regions])
    back = read_annotations(path).tumour()
    assert back.hausdorff_distance(drawn) < 0.01
    assert back.area == pytest.approx(drawn.area, rel=1e-3)
    # Exported again from QuPath the file is a foreign one, which says nothing.
    path.write_text(json.dumps({"type": "FeatureCollection", "features": read(path)["features"]}))
    again = read_annotations(path, bounds=(BOUNDS.x, BOUNDS.y)).tumour()
    assert again.equals(back)


def test_lesions_with_percentiles(tmp_path):
    regions = regions_of()
    path = tmp_path / "lesions.geojson"
    percentiles = [99.0 - i / 100 for i in range(len(regions))]
    write_lesions(regions, path, slide="a", bounds=BOUNDS, percentiles=percentiles)
    collection = read(path)
    check_schema(collection)
    assert [
        feature["properties"]["measurements"]["wsiad: percentile"]
        for feature in collection["features"]
    ] == percentiles
    with pytest.raises(ExportError, match="1 percentile for"):
        write_lesions(regions, path, slide="a", bounds=BOUNDS, percentiles=[1.0])


def test_lesions_that_qupath_would_not_take_leave_no_file(tmp_path):
    regions = regions_of()
    for percentile in (float("nan"), float("inf")):
        with pytest.raises(ExportError, match="finite"):
            write_lesions(
                regions,
                tmp_path / "lesions.geojson",
                slide="a",
                bounds=BOUNDS,
                percentiles=[percentile] * len(regions),
            )
    bow_tie = shapely.Polygon([(1000, 500), (1009, 509), (1009, 500), (1000, 509)])
    sliver = shapely.Polygon([(1000, 500), (1009, 500), (1009, 500.001)])
    for polygon, problem in [
        (bow_tie, "not a valid polygon"),
        (sliver, "not a valid polygon"),  # without area once it is rounded
        (shapely.box(0, 0, 900, 400), "not a valid polygon"),  # outside of the bounds
        (shapely.box(1000, 500, 1009, np.inf), "not finite"),
    ]:
        bad = [regions[0], dataclasses.replace(regions[1], polygon=polygon)]
        with pytest.raises(ExportError, match=problem):
            write_lesions(bad, tmp_path / "l.geojson", slide="a", bounds=BOUNDS)
    with pytest.raises(ExportError, match="identifier"):
        write_lesions([regions[0], regions[0]], tmp_path / "l.geojson", slide="a", bounds=BOUNDS)
    assert not list(tmp_path.iterdir())


BROKEN = {
    "no colour": lambda f: f["properties"]["classification"].pop("color"),
    "null colour": lambda f: f["properties"]["classification"].update(color=None),
    "hex colour": lambda f: f["properties"]["classification"].update(color="#c80000"),
    "colour out of range": lambda f: f["properties"]["classification"].update(color=[0, 0, 256]),
    "blank class": lambda f: f["properties"]["classification"].update(name=" "),
    "null name": lambda f: f["properties"].update(name=None),
    "blank name": lambda f: f["properties"].update(name=""),
    "null properties": lambda f: f.update(properties={}),
    "unknown property": lambda f: f["properties"].update(colour=[1, 2, 3]),
    "object type": lambda f: f["properties"].update(objectType="box"),
    "lock": lambda f: f["properties"].update(isLocked="yes"),
    "text measurement": lambda f: f["properties"]["measurements"].update(a="high"),
    "null measurement": lambda f: f["properties"]["measurements"].update(a=None),
    "bool measurement": lambda f: f["properties"]["measurements"].update(a=True),
    "nan measurement": lambda f: f["properties"]["measurements"].update(a=float("nan")),
    "blank measurement": lambda f: f["properties"]["measurements"].update({"": 1.0}),
    "no id": lambda f: f.pop("id"),
    "id no uuid": lambda f: f.update(id="patch_0"),
    "extra key": lambda f: f.update(objectType="tile"),
    "type": lambda f: f.update(type="feature"),
    "geometry collection": lambda f: f["geometry"].update(type="GeometryCollection"),
    "plane": lambda f: f["geometry"].update(plane={"z": 0}),
    "no rings": lambda f: f["geometry"].update(coordinates=[]),
    "open ring": lambda f: f["geometry"]["coordinates"][0].pop(),
    "short ring": lambda f: f["geometry"].update(coordinates=[[[0, 0], [1, 1], [0, 0]]]),
    "bow tie": lambda f: f["geometry"].update(
        coordinates=[[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]
    ),
    "no area": lambda f: f["geometry"].update(coordinates=[[[0, 0], [9, 0], [5, 0], [0, 0]]]),
    "hole outside": lambda f: f["geometry"]["coordinates"].append(
        [[3000, 2900], [3001, 2900], [3001, 2901], [3000, 2900]]
    ),
    "negative": lambda f: f["geometry"].update(coordinates=[[[-1, 0], [9, 0], [9, 9], [-1, 0]]]),
    "beyond": lambda f: f["geometry"].update(coordinates=[[[0, 0], [4001, 0], [9, 9], [0, 0]]]),
    "nan position": lambda f: f["geometry"].update(
        coordinates=[[[0, 0], [float("nan"), 0], [9, 9], [0, 0]]]
    ),
    "three numbers": lambda f: f["geometry"].update(
        coordinates=[[[0, 0, 0], [9, 0, 0], [9, 9, 0], [0, 0, 0]]]
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_of_the_importer_is_checked(rule, lesions):
    feature = lesions["features"][0]
    check_feature(feature, bounds=BOUNDS)
    BROKEN[rule](feature)
    with pytest.raises(RuleError):
        check_feature(feature, bounds=BOUNDS)


def test_one_bad_feature_is_named(lesions):
    lesions["features"][2]["properties"]["name"] = None
    with pytest.raises(RuleError, match="feature 2"):
        check_collection(lesions, bounds=BOUNDS)


def test_collections_that_import_nothing_are_refused(lesions):
    for change in ({"type": "featureCollection"}, {"crs": {}}):
        with pytest.raises(RuleError, match="collection"):
            check_collection({**lesions, **change}, bounds=BOUNDS)
    twice = copy.deepcopy(lesions)
    twice["features"][1]["id"] = twice["features"][0]["id"]
    with pytest.raises(RuleError, match="identifier of another"):
        check_collection(twice, bounds=BOUNDS)


def test_the_text_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("wsiad.exports.qupath.objects._CHUNK", 64)
    windows = windows_of(16_000, edge=8.0, columns=400)
    tracemalloc.start()
    write_tiles(windows, tmp_path / "tiles.geojson.gz", slide="a", bounds=BOUNDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    text = len(gzip.decompress((tmp_path / "tiles.geojson.gz").read_bytes()))
    assert peak < 0.8 * text


def test_what_was_not_assessed_is_an_annotation_of_its_own_class(tmp_path):
    regions = [("pen", region) for region in regions_of()]
    path = tmp_path / "not_assessed.geojson"
    write_unassessed(regions, path, slide="a", bounds=BOUNDS)
    collection = read(path)
    check_schema(collection)
    check_collection(collection, bounds=BOUNDS)
    lesions = tmp_path / "lesions.geojson"
    write_lesions(regions_of(), lesions, slide="a", bounds=BOUNDS)
    for feature, lesion in zip(collection["features"], read(lesions)["features"], strict=True):
        assert feature["geometry"] == lesion["geometry"]
        assert feature["id"] != lesion["id"]
        properties = feature["properties"]
        assert properties["name"] == "not assessed: pen"
        assert properties["classification"]["name"] == "Not assessed"
        # By this prefix the import script knows what it imported before.
        assert all(name.startswith("wsiad: ") for name in properties["measurements"])
