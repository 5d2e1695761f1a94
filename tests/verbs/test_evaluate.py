"""The verb: results and submissions in, evaluation.json and plots out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsiad.core.config import config_class, option_texts
from wsiad.core.errors import AnnotationError, ConfigError, EvaluationError, WsiadError
from wsiad.core.geometry import Size
from wsiad.evaluation.submission import read_detections, read_submission
from wsiad.verbs.evaluate import EvaluateConfig, evaluate

V1, V2 = "camelyon16-2016", "camelyon16-dataset"

# A submission on three slides: two lesions on the first, one on the second.


@pytest.fixture
def submission(tmp_path):
    folder = tmp_path / "submission"
    (folder / "detections").mkdir(parents=True)
    (folder / "masks").mkdir()
    for slide, squares in {"test_001": [(20, 20), (20, 120)], "test_002": [(60, 60)]}.items():
        mask = np.zeros((140, 200), dtype=np.uint8)
        for row, column in squares:
            mask[row : row + 50, column : column + 50] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{slide}.png")
    # On four slides 1/3 is found at no false positive, up to 2/3 at 0.25, all at 0.5.
    write(folder / "detections/test_001.csv", "0.9375,1280,1280\n0.75,5000,1280\n")
    write(folder / "detections/test_002.csv", "0.875,100,100\n0.5,2560,2560\n")
    write(folder / "detections/test_003.csv", "0.625,3000,3000\n")
    write(folder / "detections/test_004.csv", "")
    write(
        folder / "reference.csv",
        "image,type\ntest_001.tif,tumor\ntest_002.tif,tumor\n"
        "test_003.tif,normal\ntest_004.tif,normal\n",
    )
    return folder


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def run(folder, **options):
    options = {"masks": folder / "masks", "bootstrap": 20, "spacing_um": 0.243, **options}
    result = evaluate(
        detections=folder / "detections",
        reference=folder / "reference.csv",
        out=folder / "out",
        **options,
    )
    return strict_json(result.report)


def strict_json(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_submission_is_scored(submission):
    values = run(submission, bootstrap=200)
    for protocol in (V1, V2):
        froc = values["froc"][protocol]
        known = {
            # Nothing is missed: the 2016 script drops the lowest threshold, and a hit.
            V1: [2 / 3] * 6,
            # The first, that is the lower, of two points at the same false positives.
            V2: [1 / 3, 2 / 3, 1, 1, 1, 1],
        }
        assert list(froc["sensitivity_at"]) == ["0.25", "0.5", "1", "2", "4", "8"]
        assert list(froc["sensitivity_at"].values()) == pytest.approx(known[protocol])
        assert froc["score"] == pytest.approx(np.mean(known[protocol]))
        assert froc["score_all_thresholds"] == pytest.approx((2 / 3 + 5) / 6)
        assert froc["low"] <= froc["score"] <= froc["high"]
        assert (froc["lesions"], froc["itc"], froc["false_positives"]) == (3, 0, 2)
        assert froc["n_ties"] == 0
    # Scores 0.9375 and 0.875 against 0.625 and none.
    assert values["slide_auc"]["value"] == 1
    assert values["tile_auroc"]["value"] is None
    assert values["tile_auroc"]["undefined"]
    counts = values["counts"]
    assert (counts["slides"], counts["tumour_slides"], counts["lesions"]) == (4, 2, 3)
    assert counts["detections"] == 5
    assert [slide["score"] for slide in values["slides"]] == [0.9375, 0.875, 0.625, None]
    assert values["made_by"]["config"]["seed"] == 0


def test_plots_are_png_and_runs_repeat_to_the_byte(submission):
    run(submission)
    first = {path.name: path.read_bytes() for path in (submission / "out").iterdir()}
    run(submission)
    second = {path.name: path.read_bytes() for path in (submission / "out").iterdir()}
    assert set(first) == {
        "evaluation.json", "lesions.csv", "roc.png", "froc.png", "truth.json",
    }  # fmt: skip
    assert first == second
    for name in ("roc.png", "froc.png"):
        with Image.open(submission / "out" / name) as image:
            assert min(image.size) > 500


def test_a_mask_of_another_scale_is_another_lesion_map(submission):
    # At 1.4 µm per mask pixel 75 µm are 54 pixels, and the gap is 50: two become one.
    froc = run(submission, spacing_um=1.4 / 32)["froc"][V1]
    assert froc["lesions"] + froc["itc"] == 2
    assert froc["spacing"] == {"given": 4}


def test_protocols_are_chosen_by_name(submission):
    assert list(run(submission, protocols=[V2])["froc"]) == [V2]
    with pytest.raises(ConfigError, match="protocols"):
        run(submission, protocols=["camelyon17"])


# What is not defined


def test_without_lesions_froc_is_null_with_a_reason(submission):
    write(
        submission / "reference.csv",
        "image,type\n" + "".join(f"test_00{i},normal\n" for i in range(1, 5)),
    )
    for path in (submission / "masks").iterdir():
        path.unlink()
    values = run(submission)
    for protocol in (V1, V2):
        froc = values["froc"][protocol]
        assert (froc["score"], froc["low"], froc["high"]) == (None, None, None)
        assert set(froc["sensitivity_at"].values()) == {None}
        assert "no lesion" in froc["undefined"]
    assert values["slide_auc"]["value"] is None
    assert "no tumour slide" in values["slide_auc"]["undefined"]
    assert values["counts"]["lesions"] == 0


def test_isolated_tumour_cells_alone_are_no_lesion(submission):
    cells = np.zeros((140, 200), dtype=np.uint8)
    cells[40, 40] = 255
    for path in (submission / "masks").iterdir():
        Image.fromarray(cells).save(path)
    froc = run(submission)["froc"][V1]
    assert froc["score"] is None
    assert "all 2 tumour regions are isolated tumour cells" in froc["undefined"]
    assert froc["itc"] == 2
    assert froc["score_with_itc"] is not None


def test_without_ground_truth_there_is_slide_auc_only(submission):
    values = run(submission, masks=None)
    assert values["slide_auc"]["value"] == 1
    assert "neither annotations nor masks" in values["froc"][V1]["undefined"]
    assert values["counts"]["lesions"] is None


def test_a_tumour_slide_without_marked_tumour_is_told(submission):
    Image.fromarray(np.zeros((140, 200), dtype=np.uint8)).save(submission / "masks/test_002.png")
    result = evaluate(
        detections=submission / "detections",
        reference=submission / "reference.csv",
        masks=submission / "masks",
        out=submission / "out",
        bootstrap=20,
        spacing_um=0.243,
    )
    values = strict_json(result.report)
    assert values["froc"][V1]["lesions"] == 2
    assert any("no tumour is marked: test_002" in note for note in values["notes"])
    # Nobody said where its tumour is: what was found on it is not wrong.
    assert (values["froc"][V1]["slides"], values["counts"]["slides_in_froc"]) == (3, 3)
    assert [slide["froc"] == {} for slide in values["slides"]] == [False, True, False, False]
    assert values["froc"][V1]["false_positives"] == 1
    assert values["slide_auc"]["value"] == 1
    said = "tumour slides left out of FROC and tile figures because no tumour is marked: test_002"
    assert result.summary.splitlines()[0] == said
    assert result.summary.count(said) == 1


# Exclusions


def test_slides_are_excluded_by_name_only_and_listed(submission):
    (submission / "detections/test_003.csv").unlink()
    with pytest.raises(EvaluationError, match="test_003: no results"):
        run(submission)
    values = run(submission, exclude=["test_003"])
    assert values["exclusions"] == {"all": ["test_003"], "froc": []}
    assert values["excluded"] == [{"slide": "test_003", "label": "normal"}]
    assert values["counts"]["slides"] == 3
    assert values["counts"]["excluded"] == 1


@pytest.mark.parametrize(("value", "unit"), [(0.000243, "millimetres"), (243, "nanometres")])
def test_a_scale_in_another_unit_is_refused(submission, value, unit):
    with pytest.raises(WsiadError, match=f"not a slide's µm/px.*looks like {unit}"):
        run(submission, spacing_um=value)


def test_a_slide_may_be_left_out_of_froc_alone(submission):
    (submission / "masks/test_002.png").unlink()
    with pytest.raises(EvaluationError, match=r"test_002: holds tumour.*exclude_from_froc"):
        run(submission)
    values = run(submission, exclude_from_froc=["test_002"])
    assert values["exclusions"] == {"all": [], "froc": ["test_002"]}
    assert values["slide_auc"]["value"] == 1
    assert values["counts"]["slides"] == 4
    assert values["froc"][V1]["slides"] == 3
    assert values["froc"][V1]["lesions"] == 2


@pytest.mark.parametrize("field", ["exclude", "exclude_from_froc"])
def test_an_exclusion_of_no_slide_is_an_error(submission, field):
    with pytest.raises(EvaluationError, match=f"test_049.*`{field}`"):
        run(submission, **{field: ["test_049"]})


def test_all_slides_excluded(submission):
    names = [f"test_00{i}" for i in range(1, 5)]
    with pytest.raises(EvaluationError, match="all slides are excluded"):
        run(submission, exclude=names)
    values = run(submission, exclude_from_froc=names)
    assert "all slides are excluded from FROC" in values["froc"][V1]["undefined"]


# What is refused


def test_reference_and_detections_must_name_the_same_slides(submission):
    write(submission / "detections/test_999.csv", "")
    with pytest.raises(EvaluationError, match=r"test_999: results in .* no row in the reference"):
        run(submission)
    assert run(submission, exclude=["test_999"])["counts"]["slides"] == 4


def test_ground_truth_against_the_reference_is_refused(submission):
    Image.fromarray(np.full((140, 200), 255, np.uint8)).save(submission / "masks/test_003.png")
    with pytest.raises(AnnotationError, match="test_003: is normal by the reference"):
        run(submission)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0.5,6400,100", r"test_001: row 2 .*lies at \(6400, 100\), beyond the slide of 6400"),
        ("0.5,100,4480", "test_001: row 2 .*beyond the slide"),
        ("0.5,-1,100", r"test_001: row 2 .*negative x \(-1\)"),
        ("0.5,1,-0.5", r"test_001: row 2 .*negative y"),
        ("-0.5,1,1", r"test_001: row 2 .*negative confidence"),
        ("high,1,1", "test_001: row 2 .*'high' as confidence"),
        ("nan,1,1", "test_001: row 2 .*'nan' as confidence"),
        ("0.5,inf,1", "test_001: row 2 .*'inf' as x"),
        ("0.5,1_0,1", "test_001: row 2 .*'1_0' as x"),
        ("0.5,,1", "test_001: row 2 .*'' as x"),
        ("0.5,1", "test_001: row 2 .*has 2 fields"),
        ("0.5,1,1,1", "test_001: row 2 .*has 4 fields"),
        ("0.5;1;1", "test_001: row 2 .*has 1 fields"),
        ("p,x,y", "test_001: row 2 .*'p' as confidence"),
    ],
)
def test_bad_rows_are_refused_with_slide_and_row(submission, row, message):
    write(submission / "detections/test_001.csv", f"0.9,1280,1280\n{row}\n")
    with pytest.raises(EvaluationError, match=message):
        run(submission)
    assert not (submission / "out").exists()


def test_an_unknown_header_is_no_header(submission):
    path = write(submission / "detections/test_001.csv", "prob,col,row\n0.5,1,1\n")
    with pytest.raises(EvaluationError, match=r"row 1 .*'prob'"):
        read_detections(path, "test_001")


def test_headers_give_the_order_of_columns(tmp_path):
    path = write(tmp_path / "a.csv", "X,Y,confidence\n10,20,0.5\n\n")
    found = read_detections(path, "a", limit=Size(11, 21))
    assert (found.confidence[0], found.x[0], found.y[0]) == (0.5, 10, 20)
    assert len(read_detections(write(tmp_path / "b.csv", "p,x,y\n"), "b")) == 0
    assert len(read_detections(write(tmp_path / "c.csv", ""), "c")) == 0


def test_a_folder_without_detections_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="holds no detections"):
        read_submission(tmp_path)
    with pytest.raises(EvaluationError, match="holds no detections"):
        read_submission(tmp_path / "none")


def test_the_reference_may_lie_among_the_detections(submission):
    text = (submission / "reference.csv").read_text()
    path = write(submission / "detections/reference.csv", text)
    result = evaluate(
        detections=submission / "detections",
        masks=submission / "masks",
        spacing_um=0.243,
        reference=path,
        out=submission / "out",
        bootstrap=5,
    )
    assert result.figures.counts["slides"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `results` or `detections`"),
        ({"results": "r", "detections": "d"}, "either `results` or `detections`"),
        ({"results": "r", "annotations": "a", "masks": "m"}, "either `annotations` or `masks`"),
        ({"detections": "d"}, "need an `out` folder"),
        ({"detections": "d", "out": "o", "slide_score": "top_k_mean"}, "`max`"),
        ({"results": "r", "exclude": ["a", "a"]}, "names something twice"),
        ({"results": "r", "protocols": []}, "protocols"),
        ({"results": "r", "bootstrap": 0}, "bootstrap"),
        ({"results": "r", "spacing_um": -1}, "spacing_um"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(reference="reference.csv", **options)


def test_every_field_of_the_config_says_what_it_is():
    assert config_class(evaluate) is EvaluateConfig
    for name, text in option_texts(EvaluateConfig).items():
        assert text, name


# Outlines of a submission whose slides are unknown


def outline(*squares, group="_0"):
    parts = []
    for x, y, edge in squares:
        corners = [(x, y), (x + edge, y), (x + edge, y + edge), (x, y + edge)]
        coordinates = "".join(
            f'<Coordinate Order="{i}" X="{a}" Y="{b}"/>' for i, (a, b) in enumerate(corners)
        )
        parts.append(
            f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}">'
            f"<Coordinates>{coordinates}</Coordinates></Annotation>"
        )
    return (
        f"<ASAP_Annotations><Annotations>{''.join(parts)}</Annotations><AnnotationGroups>"
        f'<Group Name="{group}" PartOfGroup="None"/></AnnotationGroups></ASAP_Annotations>'
    )


def test_outlines_give_what_masks_give(submission):
    write(submission / "xml/test_001.xml", outline((640, 640, 1600), (3840, 640, 1600)))
    write(submission / "xml/test_002.xml", outline((1920, 1920, 1600)))
    by_mask = run(submission)["froc"]
    values = run(submission, masks=None, annotations=submission / "xml")
    assert values["froc"] == by_mask
    assert any("unknown size" in note for note in values["notes"])


# Results of wsiad heatmap

COLUMNS = (
    "slide,status,reason,score_max,score_top_k_mean,windows,seconds,"
    "mpp_x,mpp_y,width,height,label,split"
)
WINDOW = np.dtype([(n, "f8") for n in ("x", "y", "width", "height", "score", "percentile")])


def windows(*rows):
    return np.array([(*row, 0.0) for row in rows], dtype=WINDOW)


@pytest.fixture
def results(tmp_path):
    """Two tumour and two normal slides of 8000 × 6000 pixels at 0.243 µm/px, one empty."""
    folder = tmp_path / "results"
    rows = [COLUMNS]
    scores = {"a": (9.0, 3.0), "b": (2.0, 4.0), "c": (5.0, 1.0)}
    for slide, (score, mean) in scores.items():
        rows.append(f"{slide},ok,,{score},{mean},4,1,0.243,0.243,8000,6000,,")
    rows.append("d,no-tissue,nothing,,,0,1,0.243,0.243,8000,6000,,")
    write(folder / "slides.csv", "\n".join(rows) + "\n")
    write(folder / "a/detections.csv", "confidence,x,y\n9,1500.5,1500.5\n1,7999,5999\n")
    write(folder / "b/detections.csv", "confidence,x,y\n2,10,10\n")
    write(folder / "c/detections.csv", "confidence,x,y\n")
    # Tumour is 1000 to 3000 in both directions on slides a and b.
    np.save(
        folder / "a/windows.npy",
        windows(
            (1200, 1200, 400, 400, 9.0),  # within
            (2700, 1000, 400, 400, 8.0),  # centre within, three quarters
            (2900, 1000, 400, 400, 7.0),  # centre outside, a quarter: neither
            (3000, 1000, 400, 400, 1.0),  # touches
        ),
    )
    np.save(
        folder / "b/windows.npy",
        windows((1000, 1000, 100, 100, 2.0), (5000, 0, 400, 400, 2.0)),
    )
    np.save(folder / "c/windows.npy", windows((0, 0, 400, 400, 5.0)))
    for slide in "ab":
        write(tmp_path / f"xml/{slide}.xml", outline((1000, 1000, 2000)))
    write(tmp_path / "reference.csv", "image,type\na,tumor\nb,tumor\nc,normal\nd,normal\n")
    return folder


def run_results(results, **options):
    root = results.parent
    options = {"annotations": root / "xml", "bootstrap": 50, **options}
    result = evaluate(results=results, reference=root / "reference.csv", **options)
    return strict_json(result.report)


def test_results_are_evaluated(results):
    values = run_results(results)
    # 9 and 2 against 5: a slide without tissue has no score.
    assert values["slide_auc"]["value"] == 0.5
    assert values["counts"]["slides_without_tissue"] == 1
    note = "slides without tissue, which FROC counts as slides without detections: d"
    assert note in values["notes"]
    froc = values["froc"][V1]
    # One hit at 9; a miss on b; false positives at 2 and 1 on four slides.
    assert (froc["lesions"], froc["false_positives"], froc["score"]) == (2, 2, 0.5)
    assert froc["spacing"] == {"the 2016 script's 0.243 µm/px": 4}
    assert values["froc"][V2]["spacing"] == {"the slide's own": 4}
    assert (results / "froc.png").exists()


def test_the_summary_tells_every_figure(results):
    result = evaluate(
        results=results, reference=results.parent / "reference.csv", bootstrap=5, quiet=True
    )
    lines = result.summary.splitlines()
    assert lines[:2] == [
        "1 of 4 slides has no score (1 no-tissue; 0 of them with tumour), left out of the figures",
        "  d (normal): no-tissue: nothing",
    ]
    assert lines[2].startswith("slide AUC                0.500 (no interval)")
    assert lines[3] == (
        "FROC camelyon16-2016     not defined: neither annotations nor masks were given"
    )
    assert lines[5] == "tile AUROC               not defined: no annotations were given"
    assert lines[-1] == f"see {results / 'evaluation.json'}"


def test_tiles_are_tumour_by_their_centre_and_by_their_share(results):
    values = run_results(results)
    # Tumour 9, 8, 2; healthy 1, 2, 5; pairs won 3 + 3 + 1.5.
    tile_auroc = values["tile_auroc"]
    assert tile_auroc["value"] == pytest.approx(7.5 / 9)
    assert tile_auroc["low"] <= tile_auroc["value"] <= tile_auroc["high"]
    assert tile_auroc["by_share"]["value"] == pytest.approx(7.5 / 9)
    counts = values["counts"]
    assert (counts["tiles"], counts["tumour_tiles"]) == (7, 3)
    assert (counts["healthy_tiles"], counts["ignored_tiles"]) == (3, 1)


def test_the_slide_score_is_chosen_by_name(results):
    # 3 and 4 against 1 and the lowest.
    assert run_results(results, slide_score="top_k_mean")["slide_auc"]["value"] == 1


def test_an_area_below_one_half_is_not_turned_round(results):
    write(results.parent / "reference.csv", "image,type\na,normal\nb,normal\nc,tumor\nd,tumor\n")
    values = run_results(results, annotations=None)
    # 5 against 9 and 2; d, of the other class, has no score.
    assert values["slide_auc"]["value"] == 0.5
    values = run_results(results, annotations=None, unscored="lowest")
    assert values["slide_auc"]["value"] == 0.25


def test_outlines_are_drawn_at_the_scale_of_the_slide(results):
    text = (results / "slides.csv").read_text()
    # At 0.972 µm/px level 5 would be 31 µm per pixel; the lesions are 1.9 mm across.
    write(results / "slides.csv", text.replace("0.243", "0.972"))
    froc = run_results(results)["froc"]
    assert froc[V1]["lesions"] == froc[V2]["lesions"] == 2
    assert froc[V1]["spacing"] == froc[V2]["spacing"] == {"the slide's own": 4}


def test_masks_must_fit_the_slides(results):
    masks = results.parent / "masks"
    masks.mkdir()
    mask = np.zeros((188, 250), dtype=np.uint8)
    mask[32:94, 32:94] = 255
    for slide in "ab":
        Image.fromarray(mask).save(masks / f"{slide}.png")
    assert run_results(results, annotations=None, masks=masks)["froc"][V1]["score"] == 0.5
    Image.fromarray(mask[:, :200]).save(masks / "b.png")
    with pytest.raises(EvaluationError, match=r"b: its mask of 200 × 188 pixels.*does not fit"):
        run_results(results, annotations=None, masks=masks)


def test_a_failed_slide_is_left_out_and_may_be_excluded(results):
    text = (results / "slides.csv").read_text()
    write(results / "slides.csv", text.replace("b,ok,,2.0,4.0", "b,failed,cannot be opened,,"))
    found = run_results(results)["unscored"]
    assert [one["slide"] for one in found["each"]] == ["b", "d"]
    assert found["each"][0]["reason"] == "cannot be opened"
    found = run_results(results, exclude=["b"])
    assert found["exclusions"]["all"] == ["b"]
    assert [one["slide"] for one in found["unscored"]["each"]] == ["d"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("slide,status", "name,status", "no column slide"),
        (",score_max", ",max", "no column score_max"),
        ("b,ok", "b,fine", "row 3.*status of b is 'fine'"),
        ("b,ok,,2.0", "b,ok,,", "row 3.*score_max of b is ''"),
        ("b,ok,,2.0", "b,ok,,nan", "row 3.*score_max of b is 'nan'"),
        ("c,ok", "b,ok", "row 4.*b is listed twice"),
        ("4,1,0.243", "4,1,0", "mpp_x of a is '0'"),
        (",8000,6000", ",8000,", "height of a is ''"),
        ("b,ok,,", "b,ok,,,", "row 3.*as many fields"),
        ("b,ok", "../b,ok", "row 3.*cannot be used as a name"),
    ],
)
def test_bad_tables_of_slides_are_refused(results, old, new, message):
    text = (results / "slides.csv").read_text()
    assert old in text
    write(results / "slides.csv", text.replace(old, new, 1))
    with pytest.raises(EvaluationError, match=message):
        run_results(results)


def test_missing_and_damaged_files_of_a_slide_are_refused(results):
    good = np.load(results / "b/windows.npy")
    bad = good.copy()
    bad["score"][1] = np.nan
    np.save(results / "b/windows.npy", bad)
    with pytest.raises(EvaluationError, match=r"b: window 1 .*no finite score"):
        run_results(results)
    np.save(results / "b/windows.npy", np.zeros((3, 6)))
    with pytest.raises(EvaluationError, match=r"b.windows.npy: .*not a table of"):
        run_results(results)
    np.save(results / "b/windows.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(EvaluationError, match=r"\bb(: |/windows.npy: ).*cannot be read"):
        run_results(results)
    (results / "b/windows.npy").unlink()
    with pytest.raises(EvaluationError, match=r"\bb(: |/windows.npy: ).*cannot be read"):
        run_results(results)
    np.save(results / "b/windows.npy", good)
    (results / "b/detections.csv").unlink()
    with pytest.raises(EvaluationError, match=r"\bb(: |/windows.npy: ).*cannot be read"):
        run_results(results)


def test_outlines_beyond_the_slide_are_refused(results):
    write(results.parent / "xml/b.xml", outline((9000, 1000, 2000)))
    with pytest.raises(AnnotationError, match=r"b: a .* lies beyond the slide of 8000 × 6000"):
        run_results(results)


def test_a_folder_of_ground_truth_that_does_not_exist_is_refused(results):
    with pytest.raises(EvaluationError, match="is not a folder"):
        run_results(results, annotations=results / "none")


def test_ignored_annotations_are_listed(results):
    write(results.parent / "xml/c.xml", outline((0, 0, 50), group="Stroma"))
    assert run_results(results)["annotations_ignored"] == {"c": {"group Stroma": 1}}


def test_detections_beyond_the_slide_are_refused_on_normal_slides_too(results):
    write(results / "c/detections.csv", "confidence,x,y\n1,8000,1\n")
    with pytest.raises(EvaluationError, match="c: row 2"):
        run_results(results)


def test_errors_are_of_the_package_and_write_nothing(results):
    (results / "slides.csv").unlink()
    with pytest.raises(WsiadError, match=r"slides\.csv"):
        run_results(results)
    assert not (results / "evaluation.json").exists()


def test_importing_the_verb_is_light():
    code = (
        "import sys, wsiad.verbs.evaluate;"
        "print(*(m for m in ('torch', 'scipy', 'skimage', 'matplotlib', 'shapely', 'cv2')"
        " if m in sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == ""


def test_exclusions_are_told_with_the_figures_and_in_the_plots(submission):
    def one(**options):
        return evaluate(
            detections=submission / "detections",
            masks=submission / "masks",
            spacing_um=0.243,
            reference=submission / "reference.csv",
            out=submission / "out",
            bootstrap=5,
            quiet=True,
            **options,
        )

    result = one()
    assert "no slide was excluded" in result.summary
    plots = [path.read_bytes() for path in (result.roc_plot, result.froc_plot)]
    result = one(exclude=["test_003"], exclude_from_froc=["test_002"])
    assert "excluded: test_003; excluded from FROC and tile figures: test_002" in result.summary
    assert all(
        path.read_bytes() != plot
        for path, plot in zip((result.roc_plot, result.froc_plot), plots, strict=True)
    )


def test_a_long_list_of_exclusions_is_cut_short():
    from wsiad.evaluation.figures import left_out

    names = [f"tumor_{i:03}" for i in range(20)]
    assert left_out((), names).endswith("tumor_007 and 12 more")
