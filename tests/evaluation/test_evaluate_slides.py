"""Slide scores of heatmaps, the slide classifier, and figures by group."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from wsiad.core.errors import ConfigError, EvaluationError
from wsiad.core.geometry import Box, PixelMap, Size, Spacing
from wsiad.evaluation.slide_classifier import HealthyScale, slide_features
from wsiad.evaluation.truth import read_groups
from wsiad.exports.ome import write_ome_tiff
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.heatmaps.score_map import Heatmap
from wsiad.results.evaluated_slides import heatmap_scores
from wsiad.results.folder import Results
from wsiad.results.slide_results import SlideResults
from wsiad.verbs.evaluate import evaluate

V1 = "camelyon16-2016"
WINDOW = np.dtype([(n, "f8") for n in ("x", "y", "width", "height", "score", "percentile")])
SLIDES = 10
TUMOUR = 4


def heatmaps():
    """Scores of ten slides: the first four have a strong patch, the last five others weak ones."""
    rng = np.random.default_rng(0)
    maps = {}
    for number in range(SLIDES):
        scores = rng.uniform(0, 1, (30, 40)).astype(np.float32)
        scores[:3] = np.nan
        if number < TUMOUR:
            scores[10:16, 10:20] += 4
        maps[f"s{number}"] = scores
    return maps


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "results"
    rows = ["slide,status,reason,score_max,score_top_k_mean,mpp_x,mpp_y,width,height"]
    reference = ["image,type,Center"]
    for index, (slide, scores) in enumerate(heatmaps().items()):
        (folder / slide).mkdir(parents=True)
        heatmap = Heatmap(
            slide,
            scores,
            PixelMap(0, 0, 100, 100),
            Size(4000, 3000),
            Box(0, 0, 4000, 3000),
            Spacing(0.25, 0.25),
        )
        write_ome_tiff(heatmap, folder / slide / "heatmap.ome.tif")
        scored = np.argwhere(np.isfinite(scores))
        windows = np.zeros(len(scored), WINDOW)
        windows["x"], windows["y"] = scored[:, 1] * 100, scored[:, 0] * 100
        windows["width"] = windows["height"] = 100
        windows["score"] = scores[tuple(scored.T)]
        # Healthy scores are even from 0 to 1: nothing healthy is above 1.
        windows["percentile"] = 100 * windows["score"].clip(0, 1)
        np.save(folder / slide / "windows.npy", windows)
        (folder / slide / "detections.csv").write_text("confidence,x,y\n0.5,9,9\n")
        rows.append(f"{slide},ok,,{np.nanmax(scores)},1,0.25,0.25,4000,3000")
        tumour = "tumor" if index < TUMOUR else "normal"
        center = ["A", "B"][index % 2] if index < SLIDES - 1 else ""
        reference.append(f"{slide},{tumour},{center}")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")
    (folder.parent / "reference.csv").write_text("\n".join(reference) + "\n")
    return folder


def run(results, tmp_path, **options):
    result = evaluate(
        results=results,
        reference=results.parent / "reference.csv",
        out=tmp_path,
        bootstrap=20,
        quiet=True,
        **options,
    )
    text = result.report.read_text(encoding="utf-8")
    return result, json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("percentile", [50.0, 99.0, 100.0])
def test_a_percentile_of_the_heatmap_is_a_slide_score(results, tmp_path, percentile):
    _, values = run(results, tmp_path, slide_score="percentile", score_percentile=percentile)
    scores = [np.nanpercentile(scores, percentile) for scores in heatmaps().values()]
    assert [slide["score"] for slide in values["slides"]] == pytest.approx(scores)
    tumour, normal = scores[:TUMOUR], scores[TUMOUR:]
    wins = np.mean([[a > b for b in normal] for a in tumour])
    assert values["slide_auc"]["value"] == pytest.approx(wins)


def scale_of(results):
    return HealthyScale.of(
        (name, np.load(results / name / "windows.npy")) for name in sorted(heatmaps())
    )


def test_shares_of_healthy_windows_are_read_off_the_windows(results):
    scale = scale_of(results)
    for name in ("s0", "s9"):
        shares = scale.of_heatmap(heatmap_scores(Results(results).slide(name)))
        np.testing.assert_allclose(shares, heatmaps()[name].clip(0, 1), atol=1e-6)
        assert np.isnan(shares[:3]).all()


def test_between_scores_of_windows_shares_are_linear_and_beyond_them_constant():
    windows = np.zeros(3, WINDOW)
    windows["score"], windows["percentile"] = (1, 3, 2), (10, 50, 40)
    scale = HealthyScale.of([("a", windows), ("b", windows[:1])])
    scores = np.array([[0.0, 1.5, 2.5, 9.0, np.nan]], np.float32)
    np.testing.assert_allclose(scale.of_heatmap(scores), [[0.1, 0.25, 0.45, 0.5, np.nan]])
    with pytest.raises(EvaluationError, match="b: its windows have no percentiles"):
        HealthyScale.of([("b", np.zeros(2, [("score", "f8")]))])
    with pytest.raises(EvaluationError, match="no slide has a scored window"):
        HealthyScale.of([])


@pytest.mark.slow
def test_the_forest_is_told_beside_the_other_figures(results, tmp_path):
    result, values = run(results, tmp_path, slide_classifier="forest")
    forest = values["slide_classifier"]
    assert forest["note"].startswith("supervised")
    assert (forest["folds"], forest["high"], forest["low"]) == (4, 0.999, 0.99)
    assert list(forest["probabilities"]) == list(heatmaps())
    assert forest["slide_auc"]["value"] > 0.9
    assert values["slide_auc"]["value"] == 1  # what it is without
    assert "slide AUC, forest" in result.summary
    assert "supervised" in result.summary
    shares = scale_of(results).of_heatmap(heatmaps()["s0"])
    strong = slide_features(shares, high=0.999, low=0.99)
    assert strong[2] >= 60  # the patch


def test_without_a_forest_nothing_is_learnt_from_the_reference(results, tmp_path):
    _, values = run(results, tmp_path)
    assert "slide_classifier" not in values
    assert "groups" not in values


def test_every_figure_by_group(results, tmp_path):
    result, values = run(results, tmp_path, group_by="center")
    groups = values["groups"]
    assert values["group_by"] == "center"
    assert list(groups) == ["A", "B", "not stated"]
    maps = heatmaps()
    for name, members in (("A", (0, 2, 4, 6, 8)), ("B", (1, 3, 5, 7))):
        found = groups[name]
        assert found["counts"]["slides"] == len(members)
        tops = [float(np.nanmax(maps[f"s{i}"])) for i in members]
        tumour = [top for top, i in zip(tops, members, strict=True) if i < TUMOUR]
        normal = [top for top, i in zip(tops, members, strict=True) if i >= TUMOUR]
        assert found["counts"]["tumour_slides"] == len(tumour)
        wins = np.mean([[a > b for b in normal] for a in tumour])
        assert found["slide_auc"]["value"] == pytest.approx(wins)
        assert "neither annotations" in found["froc"][V1]["undefined"]
    alone = groups["not stated"]
    assert alone["counts"]["slides"] == 1
    assert alone["slide_auc"]["value"] is None
    assert "no tumour slide" in alone["slide_auc"]["undefined"]
    assert "center A" in result.summary


def test_a_group_without_located_slides_says_so(results, tmp_path):
    (tmp_path / "xml").mkdir()
    located = [f"s{i}" for i in range(SLIDES) if i % 2]
    _, values = run(
        results,
        tmp_path,
        group_by="Center",
        annotations=tmp_path / "xml",
        exclude_from_froc=[f"s{i}" for i in range(SLIDES) if f"s{i}" not in located or i < TUMOUR],
    )
    froc = {name: found["froc"][V1] for name, found in values["groups"].items()}
    assert "all slides of the group are excluded" in froc["A"]["undefined"]
    assert "no lesion" in froc["B"]["undefined"]


def test_groups_of_a_manifest(results, tmp_path):
    """Its slides are paths; those that it does not list are a group of their own."""
    rows = [f"/data/{'UMCU' if i % 3 else 'RUMC'}/s{i}.tif,{i % 3 > 0}" for i in range(SLIDES - 1)]
    (tmp_path / "manifest.csv").write_text("\n".join(["slide,hamamatsu", *rows]) + "\n")
    _, values = run(results, tmp_path, group_by="hamamatsu", groups=tmp_path / "manifest.csv")
    counts = {name: found["counts"]["slides"] for name, found in values["groups"].items()}
    expected = sum(i % 3 > 0 for i in range(SLIDES - 1))
    assert counts == {"False": SLIDES - 1 - expected, "True": expected, "not stated": 1}
    (tmp_path / "manifest.csv").write_text("slide,hamamatsu\na/s1.tif,1\nb/s1.tif,0\n")
    with pytest.raises(EvaluationError, match="s1 is in '1' already"):
        read_groups(tmp_path / "manifest.csv", "hamamatsu")
    with pytest.raises(ConfigError, match="group_by"):
        run(results, tmp_path, groups=tmp_path / "manifest.csv")


def test_a_column_that_does_not_exist_is_refused(results, tmp_path):
    with pytest.raises(EvaluationError, match=r"no column 'scanner' .*image, type, center"):
        run(results, tmp_path, group_by="scanner")
    assert read_groups(results.parent / "reference.csv", "CENTER")["s1"] == "B"


def test_heatmaps_that_cannot_be_used_are_refused(tmp_path):
    slide = SlideResults(tmp_path, tmp_path, HeatmapRow("a", "ok"))
    path = tmp_path / "heatmap.ome.tif"
    with pytest.raises(EvaluationError, match=r"heatmap\.ome\.tif: .*cannot be read"):
        heatmap_scores(slide)
    path.write_bytes(b"not a TIFF")
    with pytest.raises(EvaluationError, match=r"heatmap\.ome\.tif: .*cannot be read"):
        heatmap_scores(slide)
    tifffile.imwrite(path, np.zeros((5, 5), np.uint8))
    with pytest.raises(EvaluationError, match="not a heatmap of float32"):
        heatmap_scores(slide)
    tifffile.imwrite(path, np.full((5, 5), np.nan, np.float32))
    with pytest.raises(EvaluationError, match="holds no score"):
        heatmap_scores(slide)


@pytest.mark.parametrize(
    "options",
    [
        {"results": None, "detections": "d", "slide_classifier": "forest"},
        {"results": None, "detections": "d", "slide_score": "percentile"},
        {"slide_classifier": "svm"},
        {"feature_quantiles": [0.5, 0.9]},
        {"feature_quantiles": [0.9]},
        {"score_percentile": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(results, tmp_path, options):
    options = {"results": results, "out": tmp_path, "reference": "r.csv", **options}
    with pytest.raises(ConfigError):
        evaluate(**options)
