"""Outlines through evaluation: where they count from, what they mean, and what is said of it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import shapely

from wsiad.cli import main
from wsiad.core.errors import AnnotationError, ConfigError, EvaluationError
from wsiad.core.geometry import Size
from wsiad.evaluation.placement import covered, place
from wsiad.evaluation.truth import rasterise
from wsiad.verbs.compare import compare
from wsiad.verbs.evaluate import evaluate

COLUMNS = "slide,status,reason,score_max,score_top_k_mean,mpp_x,mpp_y,width,height"
WINDOW = np.dtype([(n, "f8") for n in ("x", "y", "width", "height", "score", "percentile")])
BOUNDS = (3000, 2000)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def area(x, y, edge, name="Tumor", **properties):
    ring = [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge], [x, y]]
    classification = {"classification": {"name": name}} if name else {}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {**classification, **properties},
    }


def outlines(folder, slide, *features, **members):
    document = {"type": "FeatureCollection", **members, "features": list(features)}
    write(folder / f"{slide}.geojson", json.dumps(document))


@pytest.fixture
def results(tmp_path):
    """Slide a, 9000 × 8000 pixels, has tissue within bounds of 4000 × 4000; b has none."""
    folder = tmp_path / "results"
    rows = [COLUMNS]
    for slide, (left, top) in {"a": BOUNDS, "b": (0, 0)}.items():
        rows.append(f"{slide},ok,,2,1,0.243,0.243,9000,8000")
        bounds = {"x": left, "y": top, "width": 4000, "height": 4000}
        write(folder / f"{slide}/heatmap.json", json.dumps({"bounds": bounds}))
        corners = [(left + i * 400, top + j * 400) for i in range(10) for j in range(10)]
        windows = np.array([(*c, 400, 400, 1, 50) for c in corners], WINDOW)
        np.save(folder / slide / "windows.npy", windows)
    # The lesion is at 1000, 1000 within the bounds.
    write(folder / "a/detections.csv", "confidence,x,y\n0.9,4500,3500\n")
    write(folder / "b/detections.csv", "confidence,x,y\n0.5,100,100\n")
    write(folder / "slides.csv", "\n".join(rows) + "\n")
    write(tmp_path / "reference.csv", "image,type\na,tumor\nb,normal\n")
    outlines(tmp_path / "drawn", "a", area(1000, 1000, 1000))
    return folder


def run(results, **options):
    root = results.parent
    options = {"annotations": root / "drawn", "bootstrap": 5, "quiet": True, **options}
    result = evaluate(results=results, reference=root / "reference.csv", **options)
    return result, json.loads(result.report.read_text(encoding="utf-8"))


def found(values):
    return values["slides"][0]["froc"]["camelyon16-dataset"]["lesions_hit"]


def test_qupaths_outlines_of_a_slide_with_bounds_count_from_their_corner(results):
    result, values = run(results)
    assert found(values) == 1
    assert values["counts"]["tumour_tiles"] == 9  # centres at 4000, 4400, 4800, both ways
    assert "outlines count from the corner of its bounds (1 slide: a)" in result.summary
    assert not any("lies" in note for note in values["notes"])


def test_a_foreign_file_in_level_0_pixels_is_warned_of_and_may_be_said_to_be(results, caplog):
    outlines(results.parent / "drawn", "a", area(4000, 3000, 1000))
    with caplog.at_level(logging.WARNING):
        result, values = run(results)
    assert found(values) == 0
    (note,) = (note for note in values["notes"] if "lies" in note)
    assert note.startswith(
        "a: 100 % of the outlined tumour (1 of 1 areas completely) lies where no"
    )
    assert "from the slide's corner: 0 % of the outlined tumour (0 of 1" in note
    assert "--annotation-origin level0" in note
    assert note in caplog.text
    assert note in result.summary
    caplog.clear()
    result, values = run(results, annotation_origin="level0")
    assert found(values) == 1
    assert "lies" not in caplog.text
    assert "outlines count from the slide's corner (1 slide: a)" in result.summary


def test_a_file_that_states_its_origin_needs_no_flag(results):
    outlines(results.parent / "drawn", "a", area(1000, 1000, 1000), wsiad={"origin": [*BOUNDS]})
    for origin in ("auto", "level0", "bounds"):
        assert found(run(results, annotation_origin=origin)[1]) == 1


def test_asap_counts_from_the_slides_corner(results):
    (results.parent / "drawn/a.geojson").unlink()
    corners = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>'
        for i, (x, y) in enumerate([(4000, 3000), (5000, 3000), (5000, 4000), (4000, 4000)])
    )
    write(
        results.parent / "drawn/a.xml",
        '<ASAP_Annotations><Annotations><Annotation Name="x" Type="Polygon" PartOfGroup="_0">'
        f"<Coordinates>{corners}</Coordinates></Annotation></Annotations>"
        '<AnnotationGroups><Group Name="_0"/></AnnotationGroups></ASAP_Annotations>',
    )
    result, values = run(results)
    assert found(values) == 1
    assert "outlines count from the slide's corner (1 slide: a)" in result.summary


def test_outlines_beyond_the_slide_are_told_by_their_share(results, caplog):
    outlines(results.parent / "drawn", "a", area(3000, 1000, 1000), area(5500, 1000, 1000))
    _, values = run(results)
    # From 8500 to 9500 of 9000 pixels: half of one of two.
    assert any(
        note.startswith("a: 25 % of the outlined tumour lies beyond the slide")
        for note in values["notes"]
    )
    outlines(results.parent / "drawn", "a", area(6100, 1000, 1000))
    with pytest.raises(AnnotationError, match=r"a: .*beyond the slide.*corner of its bounds"):
        run(results)


def test_bounds_that_are_not_known_or_damaged_are_said(results):
    (results / "a/heatmap.json").unlink()
    outlines(results.parent / "drawn", "a", area(4000, 3000, 1000))
    result, values = run(results)
    assert found(values) == 1
    assert "count from the slide's corner, as its bounds are not known (1 slide: a)" in (
        result.summary
    )
    with pytest.raises(AnnotationError, match=r"a\.geojson.*not known"):
        run(results, annotation_origin="bounds")
    for text in ("{", "[]", '{"bounds": {"x": "left", "y": 0}}', "{}"):
        write(results / "a/heatmap.json", text)
        with pytest.raises(EvaluationError, match=r"a.heatmap\.json"):
            run(results)


def test_what_is_left_aside_is_counted_and_named(results):
    outlines(
        results.parent / "drawn",
        "a",
        area(1000, 1000, 1000, "Carcinoma"),
        area(0, 0, 400, None),
        area(0, 0, 400, None, objectType="tile"),
        area(0, 0, 400, None, objectType="tile"),
        area(0, 0, 4000, "Region*"),
    )
    result, values = run(results)
    assert values["froc"]["camelyon16-2016"]["lesions"] == 0
    assert values["annotations_ignored"]["a"] == {
        "class Carcinoma": 1,
        "no class": 1,
        "tile without a class": 2,
        "class Region*": 1,
    }
    (line,) = (line for line in result.summary.splitlines() if line.startswith("outlines ignored"))
    for text in ("1 of class Carcinoma", "2 of tile without", "(1 slide: a)", "--class-map"):
        assert text in line
    assert line in values["conditions"]
    result, values = run(results, class_map={"carcinoma": "tumor", "Lymph": "ignore"})
    assert found(values) == 1
    assert "mapped classes that no outline has: lymph" in result.summary


def test_classes_are_mapped_on_the_command_line_and_in_yaml(results, capsys):
    outlines(
        results.parent / "drawn",
        "a",
        area(1000, 1000, 1000, "Carcinoma"),
        area(1000, 1000, 100, "Tumor: Other"),
    )
    root = results.parent
    command = ["evaluate", str(results), "--reference", str(root / "reference.csv"), "--quiet"]
    command += ["--annotations", str(root / "drawn"), "--bootstrap", "5"]
    flags = ["--class-map", "Carcinoma=tumor", "--class-map", "Tumor: Other=cut-out"]
    assert main([*command, *flags]) == 0
    assert "no outline was ignored" in capsys.readouterr().out
    write(root / "config.yaml", "class_map:\n  Carcinoma: tumor\n  'Tumor: Other': ignore\n")
    assert main([*command, "--config", str(root / "config.yaml")]) == 0
    assert "outlines ignored because they are not known to be tumour: 1 of class Tumor: Other" in (
        capsys.readouterr().out
    )
    assert main([*command, "--class-map", "Carcinoma=malignant"]) == 2
    assert "'malignant'" in capsys.readouterr().err
    for options in ({"class_map": {"A": "tumor"}}, {"annotation_origin": "level0"}):
        with pytest.raises(ConfigError, match="need outlines"):
            run(results, annotations=None, **options)


def test_detections_without_a_scale_are_refused_and_with_one_are_as_results(results, tmp_path):
    root = results.parent
    write(results / "slides.csv", (results / "slides.csv").read_text().replace("0.243", "0.972"))
    outlines(root / "drawn", "a", area(1000, 1000, 150), area(1250, 1000, 150))
    for slide in "ab":
        write(root / f"found/{slide}.csv", (results / slide / "detections.csv").read_text())

    def of_detections(**options):
        return evaluate(
            detections=root / "found",
            annotations=root / "drawn",
            reference=root / "reference.csv",
            out=tmp_path / "out",
            bootstrap=5,
            quiet=True,
            **options,
        )

    with pytest.raises(EvaluationError, match=r"a: no µm/px is known.*--spacing-um"):
        of_detections()
    outlines(root / "drawn", "a", area(1000, 1000, 150), area(1250, 1000, 150))
    result = of_detections(spacing_um=0.972)
    _, values = run(results)
    known = json.loads(result.report.read_text(encoding="utf-8"))
    for protocol in ("camelyon16-2016", "camelyon16-dataset"):
        # 97 µm lie between the two at this scale, and 24 at CAMELYON16's.
        for key in ("lesions", "itc"):
            assert known["froc"][protocol][key] == values["froc"][protocol][key]
    assert known["froc"]["camelyon16-2016"]["itc"] == 2
    assert (
        "scale of camelyon16-2016, camelyon16-dataset: 0.972 µm/px (given), mask pixels of 8 "
        "level-0 pixels, on 1 slide with tumour"
    ) in result.summary
    # Without ground truth there is nothing that a scale would be needed for.
    reference = root / "reference.csv"
    evaluate(detections=root / "found", reference=reference, out=tmp_path / "out", quiet=True)


def test_a_comparison_says_what_it_rests_on_too(results, tmp_path):
    root = results.parent
    outlines(root / "drawn", "a", area(1000, 1000, 1000), area(0, 0, 9, "Carcinoma"))
    for slide in "ab":
        write(root / f"found/{slide}.csv", (results / slide / "detections.csv").read_text())
    done = compare(
        a=results,
        b=root / "found",
        reference=root / "reference.csv",
        annotations=root / "drawn",
        out=tmp_path / "out",
        bootstrap=5,
        quiet=True,
    )
    # Detections know no bounds: those of the results hold for both.
    assert "outlines count from the corner of its bounds (1 slide: a)" in done.summary
    assert "1 of class Carcinoma" in done.summary
    values = json.loads(done.report.read_text(encoding="utf-8"))
    assert values["froc"]["camelyon16-2016"]["difference"] == 0
    assert any("Carcinoma" in line for line in values["conditions"])


def test_pixels_that_windows_cover_agree_with_brute_force():
    rng = np.random.default_rng(3)
    windows = np.zeros(40, WINDOW)
    for name, low, high in (("x", -50, 900), ("y", -50, 700), ("width", 1, 90), ("height", 1, 90)):
        windows[name] = rng.uniform(low, high, 40)
    windows[:10] = np.rint(windows[:10].view("f8")).view(WINDOW)  # edges on corners
    mask = covered(windows, (20, 25), 32)
    for row in range(20):
        for column in range(25):
            x, y = column * 32, row * 32
            inside = (windows["x"] <= x) & (x < windows["x"] + windows["width"])
            inside &= (windows["y"] <= y) & (y < windows["y"] + windows["height"])
            assert mask[row, column] == inside.any()


def test_shares_of_areas_beside_windows_are_told():
    from wsiad.annotations import Annotations, Outline, Role

    rings = [shapely.box(0, 0, 320, 320), shapely.box(640, 0, 960, 320)]
    drawn = Annotations(
        "memory",
        tuple(
            Outline("a", "_0", Role.TUMOUR, shapely.get_coordinates(ring)[:-1]) for ring in rings
        ),
    )
    mask = rasterise(drawn, Size(40, 20), scale=32)
    windows = np.array([(0, 0, 160, 320, 1, 0)], WINDOW)
    placed = place(drawn.tumour(), mask, step=32, size=Size(800, 320), windows=windows)
    assert placed.beyond == pytest.approx(0.25)
    assert placed.unscored == pytest.approx(0.75)
    assert (placed.areas, placed.unscored_areas) == (2, 1)
    assert placed.doubtful
    placed = place(drawn.tumour(), mask, step=32, size=None, windows=None)
    assert (placed.beyond, placed.unscored, placed.doubtful) == (None, None, False)
