"""Slides without a score: left out of every ranking, said first, or counted as asked."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from wsiad.cli import main
from wsiad.core.errors import EvaluationError
from wsiad.verbs.compare import compare
from wsiad.verbs.evaluate import evaluate

V1 = "camelyon16-2016"
HEAD = "slide,status,reason,score_max,score_top_k_mean,mpp_x,mpp_y,width,height\n"
WINDOW = np.dtype([(n, "f8") for n in ("x", "y", "width", "height", "score", "percentile")])
SIZE = "0.243,0.243,6400,4480"

TUMOUR = {"t1": 9.0, "t2": 4.0, "blood": None, "biopsy": None}
NORMAL = {"n1": 5.0, "n2": 1.0, "glass": None, "grey": None, "gone": None}
OTHER = {
    "blood": ("unusable", "40 % was taken for pen marks", SIZE),
    "biopsy": ("unusable", "it is smaller than a window", SIZE),
    "glass": ("no-tissue", "", SIZE),
    "grey": ("unusable", "16 bits", ",,,"),
    "gone": ("failed", "is not a slide", ",,,"),
}


def write_results(folder, scores, other=OTHER):
    """A results folder as wsiad heatmap writes it, as far as evaluation reads it."""
    folder.mkdir(parents=True)
    rows = []
    for slide, score in scores.items():
        if slide in other:
            status, reason, size = other[slide]
            rows.append(f"{slide},{status},{reason},,,{size}\n")
            continue
        rows.append(f"{slide},ok,,{score},{score},{SIZE}\n")
        (folder / slide).mkdir()
        hit = "2500,2000" if slide.startswith("t") else "10,10"
        (folder / slide / "detections.csv").write_text(f"confidence,x,y\n{score},{hit}\n")
        np.save(folder / slide / "windows.npy", np.array([(0, 0, 9, 9, score, 0)], WINDOW))
    (folder / "slides.csv").write_text(HEAD + "".join(rows))
    return folder


@pytest.fixture
def study(tmp_path):
    """Four tumour slides, each with a lesion, and five normal ones; five have no score."""
    write_results(tmp_path / "results", TUMOUR | NORMAL)
    (tmp_path / "masks").mkdir()
    mask = np.zeros((140, 200), np.uint8)
    mask[40:90, 60:110] = 255
    for slide in TUMOUR:
        Image.fromarray(mask).save(tmp_path / f"masks/{slide}.png")
    rows = [f"{s},tumor" for s in TUMOUR] + [f"{s},normal" for s in NORMAL]
    (tmp_path / "reference.csv").write_text("\n".join(["image,type", *rows]) + "\n")
    return tmp_path


def run(study, **options):
    options = {"bootstrap": 20, "quiet": True, "spacing_um": 0.243, **options}
    result = evaluate(
        results=study / "results",
        reference=study / "reference.csv",
        masks=study / "masks",
        out=study / "out",
        **options,
    )
    return result, json.loads(result.report.read_text(), parse_constant=pytest.fail)


def auc(tumour, normal):
    """Share of the pairs that are in order, a tie by half."""
    wins = [(t > n) + (t == n) / 2 for t, n in itertools.product(tumour, normal)]
    return sum(wins) / len(wins)


def test_slides_without_a_score_are_not_ranked(study):
    _, values = run(study)
    assert values["slide_auc"]["value"] == auc([9, 4], [5, 1])
    counts = values["counts"]
    assert (counts["slides"], counts["tumour_slides"], counts["normal_slides"]) == (4, 2, 2)
    by_name = {one["slide"]: one for one in values["slides"]}
    assert {name for name, one in by_name.items() if not one["ranked"]} == set(OTHER)
    assert {by_name[name]["status"] for name in OTHER} == {"unusable", "no-tissue", "failed"}


@pytest.mark.parametrize(("counted_as", "value"), [("lowest", -1e9), ("highest", 1e9)])
def test_they_count_as_lowest_or_highest_where_that_is_asked_for(study, counted_as, value):
    result, values = run(study, unscored=counted_as)
    tumour, normal = ([value if s is None else s for s in side.values()]
                      for side in (TUMOUR, NORMAL))  # fmt: skip
    assert values["slide_auc"]["value"] == pytest.approx(auc(tumour, normal))
    assert values["counts"]["slides"] == 9
    assert values["unscored"]["counted_as"] == counted_as
    assert f"counted as the {counted_as} score" in result.summary.splitlines()[0]
    # Neither can have found a lesion: t1 and t2 of four are hit.
    froc = values["froc"][V1]
    assert (froc["lesions"], froc["slides"], froc["sensitivity_at"]["8"]) == (4, 9, 0.5)


def test_what_was_not_looked_at_takes_no_part_in_froc(study):
    """A slide without tissue was seen, and has nothing: that is no false positive."""
    _, values = run(study)
    froc = values["froc"][V1]
    assert (froc["lesions"], froc["slides"], froc["sensitivity_at"]["8"]) == (2, 5, 1.0)
    assert values["counts"]["slides_in_froc"] == 5
    assert (
        "slides without tissue, which FROC counts as slides without detections: glass"
        in (values["notes"])
    )


def test_how_many_and_why_stands_first_and_tumour_slides_are_named(study):
    result, values = run(study)
    lines = result.summary.splitlines()
    assert lines[0] == (
        "5 of 9 slides have no score (3 unusable, 1 no-tissue, 1 failed; 2 of them with tumour: "
        "biopsy, blood), left out of the figures"
    )
    assert lines[1:3] == [
        "  biopsy (tumour): unusable: it is smaller than a window",
        "  blood (tumour): unusable: 40 % was taken for pen marks",
    ]
    assert "no slide was excluded" not in result.summary
    # Nothing was read of them whose place could be wrong.
    assert "unknown size" not in result.summary
    assert next(iter(values)) == "unscored"
    told = values["unscored"]
    assert (told["slides"], told["of"], told["tumour_slides"]) == (5, 9, 2)
    assert told["by_status"] == {"unusable": 3, "failed": 1, "no-tissue": 1}
    assert told["each"][0] == {
        "slide": "biopsy", "label": "tumour", "status": "unusable",
        "reason": "it is smaller than a window",
    }  # fmt: skip
    assert told["text"] == lines[0]


def test_nothing_is_said_where_every_slide_has_a_score(study):
    result, values = run(study, exclude=list(OTHER))
    assert values["unscored"]["slides"] == 0
    assert result.summary.startswith("excluded: biopsy, blood, glass, gone, grey\n")


def test_the_plots_say_it(study):
    plots = [run(study, **options)[0].roc_plot.read_bytes()
             for options in ({}, {"exclude": list(OTHER)}, {})]  # fmt: skip
    assert plots[0] == plots[2] != plots[1]


def test_a_group_of_slides_without_scores_has_no_figure(study):
    (study / "groups.csv").write_text(
        "slide,center\n" + "".join(f"{s},{'x' if s in OTHER else 'y'}\n" for s in TUMOUR | NORMAL)
    )
    result, values = run(study, group_by="center", groups=study / "groups.csv")
    assert values["groups"]["x"]["slide_auc"]["value"] is None
    assert values["groups"]["x"]["counts"]["slides"] == 0
    assert values["groups"]["x"]["counts"]["slides_without_score"] == 5
    assert "center x                 0 slides (5 more without a score)" in result.summary
    assert values["groups"]["y"]["slide_auc"]["value"] == auc([9, 4], [5, 1])


def test_no_slide_at_all_with_a_score(study):
    write_results(study / "none", dict.fromkeys(OTHER))
    (study / "few.csv").write_text("image,type\n" + "".join(f"{s},normal\n" for s in OTHER))
    result = evaluate(results=study / "none", reference=study / "few.csv",
                      masks=study / "masks", out=study / "out", quiet=True)  # fmt: skip
    assert result.summary.startswith("5 of 5 slides have no score")
    assert result.figures.slide_auc.value is None


def test_a_comparison_is_of_the_slides_that_both_have_scored(study):
    scores = {"t1": 9.0, "t2": 4.0, "blood": 7.0, "biopsy": 6.0, "n1": 5.0, "n2": 1.0,
              "glass": 3.0, "grey": 2.0, "gone": 8.0}  # fmt: skip
    write_results(study / "b", scores, other={"t1": ("failed", "is not a slide", ",,,")})

    def one(**options):
        result = compare(a=study / "results", b=study / "b", reference=study / "reference.csv",
                         masks=study / "masks", out=study / "c", bootstrap=20, quiet=True,
                         spacing_um=0.243, **options)  # fmt: skip
        return result, json.loads(result.report.read_text())

    result, values = one()
    # t2 against n1 and n2 is all that both have scored.
    assert values["slide_auc"]["a"] == values["slide_auc"]["b"] == auc([4], [5, 1])
    assert values["counts"]["slides"] == 3
    assert values["counts"]["lesions"] == 1
    assert next(iter(values)) == "unscored"
    assert values["unscored"]["a"]["slides"] == 5
    assert [s["slide"] for s in values["unscored"]["b"]["each"]] == ["t1"]
    lines = result.summary.splitlines()
    assert lines[0].startswith("a: 5 of 9 slides have no score")
    assert "b: 1 of 9 slides has no score (1 failed; 1 of them with tumour: t1)" in result.summary
    assert "a: 5 of 9 slides have no score" in result.table.read_text()
    both = "figures cover the slides that both have scored: 3 of 9, 1 with tumour"
    assert lines.index(both) < lines.index(f"a: {study / 'results'}")
    assert both in result.table.read_text()
    result, values = one(unscored="lowest")
    assert "both have scored" not in result.summary
    low = -1e9
    assert values["slide_auc"]["a"] == auc([9, 4, low, low], [5, 1, low, low, low])
    assert values["slide_auc"]["b"] == auc([low, 4, 7, 6], [5, 1, 3, 2, 8])


def test_a_forest_neither_learns_from_nor_judges_them(study, monkeypatch):
    from wsiad.results.slide_results import SlideResults

    monkeypatch.setattr(SlideResults, "scores", lambda slide: np.full((4, 4), 1.0, np.float32))
    _, values = run(study, slide_classifier="forest")
    assert set(values["slide_classifier"]["probabilities"]) == {"t1", "t2", "n1", "n2"}


def test_a_reference_slide_without_a_file_of_detections_is_not_one_without_findings(study):
    (study / "csv").mkdir()
    for slide in ("t1", "n1"):
        (study / f"csv/{slide}.csv").write_text("0.5,10,10\n")
    (study / "csv/t2.csv").write_text("")
    (study / "ref.csv").write_text("image,type\nt1,tumor\nt2,tumor\nn1,normal\nn2,normal\n")
    options = {"detections": study / "csv", "reference": study / "ref.csv", "out": study / "o",
               "quiet": True}  # fmt: skip
    with pytest.raises(EvaluationError, match=r"n2: no results.*exclude the slide if nobody"):
        evaluate(**options)
    values = json.loads(evaluate(exclude=("n2",), **options).report.read_text())
    assert (
        "slides without detections, taken to have been looked at and ranked lowest: t2"
        in values["notes"]
    )
    assert values["slide_auc"]["value"] == auc([0.5, -1], [0.5])


def outlined(folder, slide, name="Tumor", corner=2000, edge=400):
    """A square, as QuPath writes it."""
    x, y = corner, corner + edge
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[x, x], [y, x], [y, y], [x, y], [x, x]]]},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }
    document = {"type": "FeatureCollection", "features": [feature]}
    folder.mkdir(exist_ok=True)
    (folder / f"{slide}.geojson").write_text(json.dumps(document))


def run_outlined(study, slides, **options):
    rows = ["image,type", *(f"{slide},{label}" for slide, label in slides.items())]
    (study / "reference.csv").write_text("\n".join(rows) + "\n")
    return evaluate(
        results=study / "results",
        reference=study / "reference.csv",
        annotations=study / "outlines",
        out=study / "out",
        bootstrap=20,
        quiet=True,
        **options,
    )


def test_windows_of_a_tumour_slide_on_which_none_is_marked_are_not_healthy(tmp_path):
    write_results(tmp_path / "results", {"t1": 9.0, "t2": 4.0, "n1": 5.0})
    outlined(tmp_path / "outlines", "t1", corner=0)
    outlined(tmp_path / "outlines", "t2", name="Carcinoma")
    slides = {"t1": "tumor", "t2": "tumor", "n1": "normal"}
    values = json.loads(run_outlined(tmp_path, slides).report.read_text())
    assert values["counts"]["tiles"] == 2  # that of t2 is in no figure
    assert values["tile_auroc"]["value"] == 1
    assert values["annotations_ignored"] == {"t2": {"class Carcinoma": 1}}
    assert values["counts"]["slides_in_froc"] == 2
    result = run_outlined(tmp_path, slides, class_map={"Carcinoma": "tumor"})
    assert json.loads(result.report.read_text())["counts"]["slides_in_froc"] == 3


def test_an_outline_smaller_than_a_pixel_of_the_mask_is_marked_all_the_same(tmp_path):
    write_results(tmp_path / "results", {"t1": 9.0, "n1": 5.0})
    outlined(tmp_path / "outlines", "t1", corner=1, edge=8)  # a mask pixel has 32 px
    values = json.loads(run_outlined(tmp_path, {"t1": "tumor", "n1": "normal"}).report.read_text())
    assert not any("no tumour is marked" in note for note in values["notes"])
    assert values["counts"]["slides_in_froc"] == 2
    assert values["counts"]["tumour_tiles"] == 1


@pytest.mark.parametrize("origin", ["auto", "bounds"])
def test_tumour_outlined_where_no_tissue_was_found_is_told(tmp_path, origin):
    """Nor does the origin of such a slide, which nobody knows, end the evaluation."""
    write_results(tmp_path / "results", {"glass": None, "n1": 5.0})
    outlined(tmp_path / "outlines", "glass")
    slides = {"glass": "tumor", "n1": "normal"}
    result = run_outlined(tmp_path, slides, annotation_origin=origin)
    values = json.loads(result.report.read_text())
    assert any(
        note.startswith(
            "glass: 100 % of the outlined tumour (1 of 1 areas completely) lies where no"
        )
        for note in values["notes"]
    )
    assert values["froc"][V1]["itc"] == 1


def test_the_flag(study, capsys):
    arguments = ["evaluate", str(study / "results"), "--reference", str(study / "reference.csv")]
    assert main([*arguments, "--unscored", "lowest", "--quiet"]) == 0
    assert "counted as the lowest score" in capsys.readouterr().out
    assert main([*arguments, "--unscored", "zero", "--quiet"]) == 2
