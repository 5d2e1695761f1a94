"""Outlines from files, and masks drawn from them."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from wsiad.annotations import (
    Annotations,
    ClassMap,
    Outline,
    Role,
    read_annotations,
    read_asap_xml,
    ring_area,
    role_of,
)
from wsiad.annotations import outlines as limits
from wsiad.annotations.outlines import has_area
from wsiad.core.errors import AnnotationError
from wsiad.core.geometry import Size
from wsiad.evaluation import truth as raster
from wsiad.evaluation.matching import evaluation_mask
from wsiad.evaluation.truth import rasterise

SHARED = Path(__file__).parents[3] / "shared"


def square(x, y, edge):
    return [(x, y), (x + edge, y), (x + edge, y + edge), (x, y + edge)]


def annotation(corners, *, group="_0", kind="Polygon", name="a", order=None):
    order = order or range(len(corners))
    coordinates = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>'
        for i, (x, y) in zip(order, corners, strict=True)
    )
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#FFF">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation>"
    )


def asap(*annotations, groups=("_0", "_1", "_2", "Tumor", "metastases", "normal", "Stroma")):
    declared = "".join(
        f'<Group Name="{g}" PartOfGroup="None"><Attributes/></Group>' for g in groups
    )
    return (
        '<?xml version="1.0"?><ASAP_Annotations><Annotations>'
        + "".join(annotations)
        + f"</Annotations><AnnotationGroups>{declared}</AnnotationGroups></ASAP_Annotations>"
    )


def read_text(tmp_path, text, name="slide.xml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_annotations(path)


def outlined(*rings, role=Role.TUMOUR):
    outlines = [Outline("a", "_0", role, np.array(ring, dtype=float)) for ring in rings]
    return Annotations("memory", tuple(outlines))


# Groups


@pytest.mark.parametrize("group", ["_0", "_1", "Tumor", "tumour", "metastases", "Metastases"])
def test_groups_of_tumour(group):
    assert role_of(group) is Role.TUMOUR


@pytest.mark.parametrize("group", ["_2", "Normal", "normal", "Exclusion"])
def test_groups_that_are_cut_out(group):
    assert role_of(group) is Role.CUT_OUT


def test_cut_outs_win_over_every_tumour_outline_under_them(tmp_path):
    read = read_text(
        tmp_path,
        asap(
            annotation(square(10, 10, 10), group="_2"),
            annotation(square(0, 0, 100)),
            annotation(square(0, 0, 50), group="_1"),
            annotation(square(500, 500, 10), group="_2"),
        ),
    )
    assert read.tumour().area == 100 * 100 - 10 * 10


def test_other_groups_and_shapes_without_area_are_left_aside_and_counted(tmp_path):
    read = read_text(
        tmp_path,
        asap(
            annotation(square(0, 0, 8)),
            annotation(square(0, 0, 8), group="Stroma"),
            annotation(square(0, 0, 8), group="Stroma"),
            annotation(square(0, 0, 8), group="None"),
            annotation([(1, 1)], kind="Dot"),
            annotation([(0, 0), (5, 5), (9, 9)]),
            annotation([]),
        ),
    )
    assert len(read.outlines) == 1
    assert read.ignored == {
        "group Stroma": 2,
        "no group": 1,
        "type Dot in group _0": 1,
        "no area in group _0": 2,
    }


def test_corners_are_read_by_their_order(tmp_path):
    corners = square(0, 0, 10)
    shuffled = [corners[i] for i in (2, 0, 3, 1)]
    read = read_text(tmp_path, asap(annotation(shuffled, order=(2, 0, 3, 1))))
    np.testing.assert_array_equal(read.outlines[0].shell, corners)


def test_a_repeated_first_corner_and_a_spline_are_taken_as_a_polygon(tmp_path):
    read = read_text(tmp_path, asap(annotation([*square(0, 0, 10), (0, 0)], kind="Spline")))
    assert len(read.outlines[0].shell) == 4
    assert read.tumour().area == 100


# Files that are refused

BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l "lol"><!ENTITY m "&l;&l;&l;&l;&l;&l;&l;&l;">'
    "]><ASAP_Annotations>&m;</ASAP_Annotations>"
)
EXTERNAL = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<ASAP_Annotations>&x;</ASAP_Annotations>"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (asap(annotation(square(0, 0, 9), group="Lesion")), "'Lesion'.*does not declare"),
        (
            asap(annotation(square(0, 0, 9))).replace(
                "</AnnotationGroups>", '<Group Name="_0" PartOfGroup="_2"/></AnnotationGroups>'
            ),
            "the group '_0' twice, in 'None' and in '_2'",
        ),
        (BILLION_LAUGHS, "not safe"),
        (EXTERNAL, "not safe"),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><ASAP_Annotations/>', "not safe"),
        ("<ASAP_Annotations><Annotations>", "not valid XML"),
        ('<?xml version="1.0" encoding="no-such"?><ASAP_Annotations/>', "not valid XML"),
        ("", "not valid XML"),
        ("<Annotations/>", "not an ASAP file"),
        (asap(annotation([(0, 0), ("1,5", 0), (2, 2)])), "not a position"),
        (asap(annotation([(0, 0), ("nan", 0), (2, 2)])), "not a position"),
        (asap(annotation([(0, 0), ("inf", 0), (2, 2)])), "not a position"),
        (asap(annotation([(0, 0), ("", 0), (2, 2)])), "not a position"),
        (asap(annotation(square(0, 0, 9), order=(0, 1, 1, 2))), "order '1' is given twice"),
        (asap(annotation(square(0, 0, 9), order=(0, 1, "x", 2))), "order 'x'"),
        (asap(annotation(square(0, 0, 9), order=(0, 1, -1, 2))), "order '-1'"),
        (asap(annotation(square(0, 0, 9), order=(0, 1, "²", 2))), "order '²' is not a whole"),
        (asap(annotation(square(0, 0, 9), order=(0, 1, "9" * 5000, 2))), "is not a whole"),
        (asap(annotation(square(0, 0, 9), order=(0, 1, "1.0", 2))), r"order '1\.0'"),
        (asap(annotation([(0, 0), ("1_0", 0), (2, 2)])), "not a position"),
    ],
)
def test_bad_xml_is_refused_with_the_file_named(tmp_path, text, message):
    with pytest.raises(AnnotationError, match=message) as caught:
        read_text(tmp_path, text)
    assert "slide.xml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_files_that_are_missing_or_unknown_are_refused(tmp_path):
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_asap_xml(tmp_path / "none.xml")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_annotations(tmp_path / "none.geojson")
    with pytest.raises(AnnotationError, match="not a known annotation file"):
        read_annotations(tmp_path / "a.txt")


# GeoJSON


def feature(geometry, classification=None, name=None):
    properties = {"classification": classification, "name": name}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [[*map(list, r), list(r[0])] for r in rings]}


def test_geojson_polygons_holes_and_classes(tmp_path):
    two = [polygon(square(100, 0, 10))["coordinates"], polygon(square(200, 0, 10))["coordinates"]]
    document = {
        "type": "FeatureCollection",
        "features": [
            feature(polygon(square(0, 0, 50), square(10, 10, 20)), "Tumor"),
            feature({"type": "MultiPolygon", "coordinates": two}, {"name": "Tumor"}),
            feature(polygon(square(105, 0, 5)), "Exclusion"),
            feature(polygon(square(300, 0, 5)), {"name": "Stroma"}),
            feature({"type": "Point", "coordinates": [1, 1]}, "Tumor"),
        ],
    }
    read = read_text(tmp_path, json.dumps(document), "slide.geojson")
    assert read.tumour().area == 50 * 50 - 20 * 20 + 2 * 10 * 10 - 5 * 5
    assert read.ignored == {"class Stroma": 1, "type Point": 1}
    mask = rasterise(read, Size(310, 60), scale=1)
    assert mask.sum() == read.tumour().area
    assert not mask[15, 15]


def test_geojson_may_be_a_feature_a_geometry_or_a_list(tmp_path):
    shape = polygon(square(0, 0, 4))
    for document in (shape, feature(shape), [feature(shape)]):
        path = tmp_path / "slide.json"
        path.write_text(json.dumps(document))
        # Nobody says that these are tumour, until somebody does.
        said_nothing = read_annotations(path)
        assert not said_nothing.outlines
        assert said_nothing.ignored == {"no class": 1}
        assert read_annotations(path, classes={"none": "tumor"}).tumour().area == 16


# Classes, as QuPath means them


@pytest.mark.parametrize(
    ("classification", "aside"),
    [
        ({"name": "Tumor", "color": [200, 0, 0]}, None),
        ({"name": " tumor "}, None),
        ({"names": ["Tumor"]}, None),
        (["Tumor"], None),
        ("Tumor", None),
        ('{ "name": "Tumor", "color": [1, 2, 3] }', None),
        ({"names": ["Tumor", "Positive"]}, "class Tumor: Positive"),
        ({"name": "Tumor: Positive", "colorRGB": -1}, "class Tumor: Positive"),
        ({"names": ["Stroma", "Negative"]}, "class Stroma: Negative"),
        ({"names": ["Ignore*"]}, "class Ignore*"),
        ({"name": "Tumor*"}, "class Tumor*"),
        ('{"names": ["Stroma"]}', "class Stroma"),
        ("{ no json", "class { no json"),
        (None, "no class"),
        ({}, "no class"),
        ({"color": [1, 2, 3]}, "no class"),
        ({"names": []}, "no class"),
        ("", "no class"),
        ({"name": "Unclassified"}, "no class"),
        (7, "class 7"),
        ({"name": "two\nlines \x1b[2J\ud800"}, "class two lines \\x1b[2J\\ud800"),
    ],
)
def test_only_what_is_said_to_be_tumour_is(tmp_path, classification, aside):
    document = [feature(polygon(square(0, 0, 10)), classification, name="Tumor")]
    read = read_text(tmp_path, json.dumps(document), "slide.geojson")
    assert read.tumour().area == (0 if aside else 100)
    assert read.ignored == ({aside: 1} if aside else {})


def test_what_is_no_annotation_is_no_tumour_unless_its_class_says_so(tmp_path):
    kinds = ["tile", "cell", "detection", "tmaCore", "tma_core", "root", "PathTileObject"]
    shape = polygon(square(0, 0, 10))
    bare = [{**feature(shape), "properties": {"objectType": kind}} for kind in kinds]
    old = [{**feature(shape), "id": "PathDetectionObject"}]
    read = read_text(tmp_path, json.dumps(bare + old), "slide.geojson")
    assert not read.outlines
    assert read.ignored == {
        "tile without a class": 2,
        "cell without a class": 1,
        "detection without a class": 2,
        "TMA core": 2,
        "root object": 1,
    }
    # What has no class is mapped for annotations, not for whatever a program found.
    path = tmp_path / "slide.geojson"
    assert not read_annotations(path, classes={"none": "tumor"}).outlines
    for item in bare:
        item["properties"]["classification"] = {"name": "Tumor"}
    read = read_text(tmp_path, json.dumps(bare), "slide.geojson")
    assert len(read.outlines) == 4
    assert read.ignored == {"TMA core": 2, "root object": 1}


def test_objects_within_objects_and_collections_are_read(tmp_path):
    def within(holder, *children):
        holder["properties"]["childObjects"] = list(children)
        return holder

    inner = within(feature(polygon(square(0, 0, 10)), "Tumor"))
    middle = within(
        feature(polygon(square(0, 0, 50)), "Stroma"),
        inner,
        feature(polygon(square(8, 8, 4)), "Exclusion"),
    )
    outer = {**feature(polygon(square(0, 0, 99)), "Region*"), "childObjects": [middle]}
    both = {
        "type": "GeometryCollection",
        "geometries": [
            polygon(square(100, 0, 10)),
            {"type": "Point", "coordinates": [1, 1]},
            {"type": "GeometryCollection", "geometries": [polygon(square(200, 0, 10))]},
        ],
    }
    document = {"type": "FeatureCollection", "features": [outer, feature(both, "Tumor")]}
    read = read_text(tmp_path, json.dumps(document), "slide.geojson")
    assert read.tumour().area == 10 * 10 - 2 * 2 + 2 * 10 * 10
    assert read.ignored == {"class Region*": 1, "class Stroma": 1, "type Point": 1}


def test_collections_within_collections_are_read_and_empty_areas_counted(tmp_path):
    def collection(*features):
        return {"type": "FeatureCollection", "features": list(features)}

    tumour = feature(polygon(square(0, 0, 10)), "Tumor")
    empty = [
        feature({"type": "GeometryCollection", "geometries": []}, "Tumor"),
        feature({"type": "MultiPolygon", "coordinates": []}, "Tumor"),
        feature({"type": "Polygon", "coordinates": []}, "Tumor"),
    ]
    for document in (
        collection(collection(tumour, collection()), *empty),
        [collection(tumour), collection(*empty)],
    ):
        read = read_text(tmp_path, json.dumps(document), "slide.geojson")
        assert read.tumour().area == 100
        assert read.ignored == {"no area": 3}


def test_groups_within_groups_mean_what_the_outer_one_does(tmp_path):
    text = asap(
        annotation(square(0, 0, 100), group="met A"),
        annotation(square(10, 10, 10), group="hole"),
        annotation(square(0, 0, 50), group="deep"),
        annotation(square(0, 0, 50), group="Artefact*"),
        annotation(square(0, 0, 50), group="round"),
        groups=("Tumor", "Exclusion"),
    )
    inner = {
        "met A": "Tumor",
        "hole": "Exclusion",
        "deep": "met A",
        "Artefact*": "Tumor",
        "round": "trip",
        "trip": "round",
    }
    more = "".join(f'<Group Name="{a}" PartOfGroup="{b}"/>' for a, b in inner.items())
    read = read_text(tmp_path, text.replace("</AnnotationGroups>", f"{more}</AnnotationGroups>"))
    assert read.tumour().area == 100 * 100 - 10 * 10
    assert [(o.group, o.role) for o in read.outlines] == [
        ("met A", Role.TUMOUR),
        ("hole", Role.CUT_OUT),
        ("deep", Role.TUMOUR),
    ]
    assert read.ignored == {"group Artefact*": 1, "group round": 1}


def test_classes_may_be_mapped(tmp_path):
    path = tmp_path / "slide.geojson"
    document = [
        feature(polygon(square(0, 0, 10)), "Carcinoma"),
        feature(polygon(square(20, 0, 10)), {"names": ["Tumor", "Positive"]}),
        feature(polygon(square(0, 0, 5)), "Ignore*"),
        feature(polygon(square(40, 0, 10)), "Tumor"),
    ]
    path.write_text(json.dumps(document))
    assert read_annotations(path).tumour().area == 100
    meanings = {"CARCINOMA": "tumour", "Tumor:Positive": "tumor", "Ignore*": "cut-out"}
    assert read_annotations(path, classes=meanings).tumour().area == 300 - 25
    read = read_annotations(path, classes={"tumor": "ignore", "Lymph": "tumor"})
    assert not read.outlines
    assert ClassMap({"tumor": "ignore", "Lymph": "tumor"}).unused(read.classes) == ["lymph"]
    xml = tmp_path / "slide.xml"
    xml.write_text(asap(annotation(square(0, 0, 8), group="Stroma"), annotation(square(9, 9, 8))))
    assert read_annotations(xml, classes={"Stroma": "tumor", "_0": "ignore"}).tumour().area == 64


@pytest.mark.parametrize(
    ("meanings", "message"),
    [({"A": "malignant"}, "'malignant'.*tumor"), ({"A": "tumor", "a": "ignore"}, "twice")],
)
def test_meanings_that_are_not_known_or_contradict_are_refused(meanings, message):
    with pytest.raises(AnnotationError, match=message):
        ClassMap(meanings)


# Where positions count from


def test_a_file_that_says_where_it_counts_from_is_read_there(tmp_path):
    document = {
        "type": "FeatureCollection",
        "wsiad": {"origin": [1344, 960.5]},
        "features": [feature(polygon(square(1, 2, 10)), "Tumor")],
    }
    path = tmp_path / "slide.geojson"
    path.write_text(json.dumps(document))
    for origin in ("auto", "level0", "bounds"):
        read = read_annotations(path, origin=origin, bounds=(7, 7))
        assert read.tumour().bounds == (1345, 962.5, 1355, 972.5)
        assert read.counted_from == "where the file says"


def test_a_file_that_does_not_counts_as_its_program_does(tmp_path):
    shape = polygon(square(1, 2, 10), square(3, 4, 2))
    geojson, xml = tmp_path / "slide.geojson", tmp_path / "slide.xml"
    geojson.write_text(json.dumps([feature(shape, "Tumor")]))
    xml.write_text(asap(annotation(square(1, 2, 10))))
    at_bounds, at_level_0 = (101, 52, 111, 62), (1, 2, 11, 12)
    bounds = (100.0, 50.0)
    read = read_annotations(geojson, bounds=bounds)
    assert read.tumour().bounds == at_bounds
    assert read.tumour().area == 96
    assert read_annotations(geojson).tumour().bounds == at_level_0
    assert read_annotations(geojson, origin="level0", bounds=bounds).tumour().bounds == at_level_0
    assert read_annotations(xml, bounds=bounds).tumour().bounds == at_level_0
    assert read_annotations(xml, origin="bounds", bounds=bounds).tumour().bounds == at_bounds
    with pytest.raises(AnnotationError, match=r"slide\.geojson.*not known"):
        read_annotations(geojson, origin="bounds")


@pytest.mark.parametrize("member", [1, {}, {"origin": 3}, {"origin": [1]}, {"origin": [True, 2]}])
def test_an_origin_that_is_not_clear_is_refused(tmp_path, member):
    text = json.dumps({"type": "FeatureCollection", "wsiad": member, "features": []})
    with pytest.raises(AnnotationError, match="count from"):
        read_text(tmp_path, text, "slide.geojson")


# Encodings, and files that are broken or too large


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_geojson_in_any_unicode(tmp_path, encoding):
    path = tmp_path / "slide.geojson"
    text = json.dumps([feature(polygon(square(0, 0, 4)), "Tumör")], ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    assert read_annotations(path).ignored == {"class Tumör": 1}


def test_xml_in_the_encoding_that_it_declares(tmp_path):
    path = tmp_path / "slide.xml"
    for encoding, mark in (("utf-16", ""), ("iso-8859-1", ""), ("utf-8", "\ufeff")):
        text = asap(annotation(square(0, 0, 4), name="Läsion"))
        text = text.replace('version="1.0"', f'version="1.0" encoding="{encoding}"')
        path.write_bytes((mark + text).encode(encoding))
        assert read_annotations(path).outlines[0].name == "Läsion"


def test_files_beyond_the_limits_are_refused_in_a_line(tmp_path, monkeypatch):
    def deep(wrap, times):
        value = feature(polygon(square(0, 0, 4)), "Tumor")
        for _ in range(times):
            value = wrap(value)
        return json.dumps(value)

    def child(value):
        return {"type": "Feature", "geometry": None, "properties": {"childObjects": [value]}}

    def collection(value):
        shape = value["geometry"]
        return feature({"type": "GeometryCollection", "geometries": [shape]}, "Tumor")

    for wrap in (child, collection):
        assert read_text(tmp_path, deep(wrap, 30), "slide.geojson").tumour().area == 16
        with pytest.raises(AnnotationError, match=r"slide\.geojson, feature 1.*deep"):
            read_text(tmp_path, deep(wrap, 40), "slide.geojson")
    monkeypatch.setattr(limits, "MAX_BYTES", 100)
    with pytest.raises(AnnotationError, match="larger than"):
        read_text(tmp_path, " " * 101, "slide.geojson")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        '{"type": "FeatureCollection"}',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, "a"], [1, 1]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [1, 1]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1], [1, 1]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[0, 0], [1, 1], [2, 0]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": 7}}]',
        '[{"geometry": {"type": "Polygon"}}]',
        '[{"geometry": [1]}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [true, 1], [1, 1]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], ["1_0", 1], [1, 1]]]}}]',
        '[{"geometry": {"type": "GeometryCollection", "geometries": [7]}}]',
        '[{"geometry": {"type": "GeometryCollection"}}]',
        '[{"properties": {"childObjects": {}}}]',
        '[{"properties": {"childObjects": [3]}}]',
        '[{"type": "FeatureCollection", "features": {}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1' + "0" * 5000 + ", 1]]]}}]",
        "[" * 100_000,
    ],
)
def test_bad_geojson_is_refused(tmp_path, text):
    with pytest.raises(AnnotationError, match=r"slide\.geojson"):
        read_text(tmp_path, text, "slide.geojson")


# Areas of rings that cross themselves


def test_what_a_ring_winds_around_twice_is_inside():
    # A pentagram's core has winding number 2: even-odd filling would leave it out.
    points = [(math.cos(a), math.sin(a)) for a in np.arange(5) * 4 * math.pi / 5]
    star = np.array(points) * 100
    assert shapely.contains_xy(ring_area(star), 0, 0)
    bow_tie = np.array([(0, 0), (2, 2), (2, 0), (0, 2)], dtype=float)
    assert ring_area(bow_tie).area == pytest.approx(2)
    assert ring_area(np.array(square(0, 0, 3), dtype=float)).area == 9


def test_areas_of_scribbles_agree_with_brute_force():
    rng = np.random.default_rng(11)
    for trial in range(30):
        corners = int(rng.integers(4, 30))
        # Every other one on a coarse grid, so that edges lie on each other.
        if trial % 2:
            ring = rng.integers(0, 9, (corners, 2)) * 8.0
        else:
            ring = rng.uniform(0, 64, (corners, 2))
        if not has_area(ring):
            continue
        area = ring_area(ring)
        assert area.is_valid
        x, y = rng.uniform(0, 64, (2, 200))
        expected = [winding_by_fractions(ring, *point) != 0 for point in zip(x, y, strict=True)]
        np.testing.assert_array_equal(shapely.contains_xy(area, x, y), expected)


def test_a_scribble_of_thousands_of_corners_is_refused_and_named(tmp_path):
    scribble = (np.random.default_rng(0).random((3000, 2)) * 3000).round(1)
    read = read_text(tmp_path, asap(annotation(scribble.tolist(), name="scribble")))
    with pytest.raises(AnnotationError, match=r"slide\.xml, scribble: .*3000 corners.*crosses"):
        read.tumour()
    assert ring_area(scribble[:200]).area == pytest.approx(5562945, abs=1)


def test_many_long_edges_side_by_side_are_refused_and_short_ones_are_not():
    teeth = np.arange(6000) * 4.0
    low = np.column_stack([teeth, np.zeros(6000)])
    beside = low + np.array([1.5, 0])
    comb = np.stack([low, low + 24000, beside + 24000, beside], axis=1)
    comb = np.concatenate([comb.reshape(-1, 2), [(24000, -9), (0, -9)]])
    with pytest.raises(AnnotationError, match="24002 corners crosses itself"):
        ring_area(comb)
    angle = np.linspace(0, 2 * np.pi, 24000, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle)]) * 9000
    assert ring_area(circle).area == pytest.approx(np.pi * 9000**2, rel=1e-6)


def test_outlines_that_cross_each_other_too_often_are_refused_together():
    rows = np.arange(500) * 4.0
    low = np.column_stack([rows, np.zeros(500)])
    aside, up = np.array([1.5, 0]), np.array([0, 2000])
    comb = np.stack([low, low + up, low + aside + up, low + aside], axis=1).reshape(-1, 2)
    comb = np.concatenate([comb, [(2000, -9), (0, -9)]])
    assert outlined(comb).tumour().area == ring_area(comb).area
    with pytest.raises(AnnotationError, match="memory: its outlines cross"):
        outlined(comb, comb[:, ::-1]).tumour()
    angle = np.linspace(0, 2 * np.pi, 9000, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle)]) * 9000
    # One drawn twice meets itself at every corner, and is no tangle.
    assert outlined(circle, circle).tumour().area == pytest.approx(np.pi * 9000**2, rel=1e-6)


# Masks


def winding_by_fractions(ring, x, y):
    """Winding number by exact arithmetic: the independent answer."""
    x, y = Fraction(x), Fraction(y)
    corners = [(Fraction(a), Fraction(b)) for a, b in ring.tolist()]
    number = 0
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        if y0 <= y < y1 and side > 0:
            number += 1
        if y1 <= y < y0 and side < 0:
            number -= 1
    return number


@pytest.mark.parametrize("scale", [1, 4, 3, 2.5])
@pytest.mark.parametrize("grain", [1, 8, 64])
def test_masks_are_exact_on_edges_and_corners(scale, grain):
    # Corners on a coarse grid, so that many pixel corners lie exactly on edges.
    rng = np.random.default_rng(grain)
    for _ in range(3):
        ring = rng.integers(-10 * grain, 40 * grain, size=(9, 2)) / grain
        mask = rasterise(outlined(ring), Size(14, 12), scale=scale)
        expected = [
            [winding_by_fractions(ring, c * scale, r * scale) != 0 for c in range(14)]
            for r in range(12)
        ]
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("scale", [3.0, 10.1, 31.7])
def test_masks_are_exact_to_the_last_bit_of_a_coordinate(scale):
    # Edges at a pixel corner and one floating-point number to either side of it.
    positions = np.arange(2, 40) * scale
    for towards in (-np.inf, None, np.inf):
        edges = positions if towards is None else np.nextafter(positions, towards)
        corner = np.arange(50) * scale
        for edge in edges:
            ring = [(edge, edge), (45 * scale, edge), (45 * scale, 45 * scale), (edge, 45 * scale)]
            inside = (corner >= edge) & (corner < 45 * scale)
            mask = rasterise(outlined(ring), Size(50, 50), scale=scale)
            np.testing.assert_array_equal(mask, inside[:, None] & inside)


def test_masks_agree_with_shapely_off_the_edges():
    rng = np.random.default_rng(5)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 400))
    radius = rng.uniform(60, 400, 400)
    ring = np.column_stack([500 + radius * np.cos(angle), 450 + radius * np.sin(angle)])
    mask = rasterise(outlined(ring), Size(130, 120), scale=8)
    x, y = np.meshgrid(np.arange(130) * 8.0, np.arange(120) * 8.0)
    np.testing.assert_array_equal(mask, shapely.contains_xy(shapely.Polygon(ring), x, y))
    assert 0.1 < mask.mean() < 0.5


def test_of_two_areas_that_share_an_edge_one_has_the_pixels_on_it():
    left = rasterise(outlined([(0, 0), (7, 3), (4, 12), (0, 12)]), Size(12, 12), scale=1)
    right = rasterise(outlined([(7, 3), (12, 0), (12, 12), (4, 12)]), Size(12, 12), scale=1)
    assert not (left & right).any()


def test_masks_do_not_depend_on_bands_or_on_what_lies_beyond_the_slide(monkeypatch):
    ring = np.array([(-50, -80), (900, 40), (300, 350), (1200, 700), (-200, 500)], dtype=float)
    whole = rasterise(outlined(ring), Size(100, 60), scale=8)
    monkeypatch.setattr(raster, "_BAND_PX", 500)
    np.testing.assert_array_equal(rasterise(outlined(ring), Size(100, 60), scale=8), whole)
    larger = rasterise(outlined(ring), Size(200, 100), scale=8)
    np.testing.assert_array_equal(larger[:60, :100], whole)
    assert not rasterise(outlined(square(5000, 5000, 9)), Size(100, 60), scale=8).any()


def test_the_deciding_point_is_the_corner_or_the_centre():
    # Half a level-0 pixel to the right of a mask pixel's edge.
    read = outlined(square(32.5, 32, 64))
    corner = rasterise(read, Size(6, 6), scale=32)
    centre = rasterise(read, Size(6, 6), scale=32, sample="centre")
    assert np.flatnonzero(corner[1]).tolist() == [2, 3]
    assert np.flatnonzero(centre[1]).tolist() == [1, 2]


# Known case


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared reference cases")
def test_the_known_asap_file():
    folder = SHARED / "cases" / "asap_xml"
    expected = json.loads((folder / "expected.json").read_text())
    known = np.asarray(Image.open(folder / "tumor_900_level5_expected.png")) == 255
    read = read_annotations(folder / "tumor_900.xml")
    assert read.tumour().area == expected["positive_area_level0"]
    np.testing.assert_array_equal(rasterise(read, Size(450, 450), scale=32, sample="centre"), known)
    for sample in ("centre", "corner"):
        mask = rasterise(read, Size(450, 450), scale=32, sample=sample)
        assert mask.sum() == expected["positive_px_level5"]
        regions = evaluation_mask(mask, pixel_um=7.776)
        assert len(regions.axes_px) == expected["n_regions_level5"]
        assert regions.itc == set(expected["itc_labels"])
        assert regions.lesions == expected["n_non_itc_lesions"]
        np.testing.assert_allclose(regions.axes_px, expected["region_axis_px"], atol=6e-3)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared CAMELYON16 outlines")
def test_real_outlines_have_the_same_area_as_polygons_and_as_masks():
    for path in sorted((SHARED / "data" / "camelyon16_annotations").glob("tumor_0[01]*.xml")):
        read = read_annotations(path)
        assert not read.ignored
        mask = rasterise(read, Size(8000, 8000), scale=32)
        assert mask.sum() * 32**2 == pytest.approx(read.tumour().area, rel=2e-3)


def test_outlines_of_wsiad_that_somebody_corrected_are_tumour():
    assert role_of("Anomaly") is Role.TUMOUR
    assert role_of("Not assessed") is None
