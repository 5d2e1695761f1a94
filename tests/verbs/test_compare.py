"""The verb: two results on the same slides in, differences out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from wsiad.cli import main
from wsiad.core.errors import ConfigError, EvaluationError
from wsiad.verbs.compare import compare
from wsiad.verbs.evaluate import evaluate

V1 = "camelyon16-2016"
WINDOW = np.dtype([(n, "f8") for n in ("x", "y", "width", "height", "score", "percentile")])
HEAD = "slide,status,reason,score_max,score_top_k_mean,mpp_x,mpp_y,width,height\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path):
    """Eight slides of 6400 × 4480, four with a lesion; detections and results of two methods."""
    rng = np.random.default_rng(0)
    (tmp_path / "masks").mkdir()
    reference = "image,type\n"
    for method in ("old", "new"):
        (tmp_path / method).mkdir()
        write(tmp_path / f"results_{method}/slides.csv", HEAD)
    for number in range(8):
        slide, tumour = f"s{number}", number < 4
        reference += f"{slide},{'tumor' if tumour else 'normal'}\n"
        if tumour:
            mask = np.zeros((140, 200), np.uint8)
            mask[40:90, 60:110] = 255
            Image.fromarray(mask).save(tmp_path / f"masks/{slide}.png")
        for method, found in (("old", 0.3), ("new", 0.7)):
            rows = [f"{rng.uniform(0.2, 0.6):.3f},{rng.integers(0, 1000)},9" for _ in range(3)]
            if tumour:
                rows.append(f"{found + rng.uniform(0, 0.2):.3f},2500,2000")
            write(tmp_path / f"{method}/{slide}.csv", "\n".join(rows) + "\n")
            folder = tmp_path / f"results_{method}"
            write(folder / f"{slide}/detections.csv", "confidence,x,y\n" + "\n".join(rows) + "\n")
            np.save(
                folder / f"{slide}/windows.npy",
                np.array([(0, 0, 9, 9, 1, 0), (2500, 2000, 9, 9, found, 0)], WINDOW),
            )
            score = max(float(row.split(",")[0]) for row in rows)
            with (folder / "slides.csv").open("a") as file:
                file.write(f"{slide},ok,,{score},{score / 2},0.243,0.243,6400,4480\n")
    write(tmp_path / "reference.csv", reference)
    return tmp_path


def run(study, a="old", b="new", **options):
    options = {"bootstrap": 50, "quiet": True, "spacing_um": 0.243, **options}
    options = {"masks": study / "masks", **options}
    result = compare(
        a=study / a,
        b=study / b,
        reference=study / "reference.csv",
        out=study / "out",
        **options,
    )
    text = result.report.read_text(encoding="utf-8")
    return result, json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_each_side_is_what_evaluate_says_of_it(study):
    _, values = run(study)
    for side in ("old", "new"):
        own = evaluate(
            detections=study / side,
            masks=study / "masks",
            spacing_um=0.243,
            reference=study / "reference.csv",
            out=study / "own",
            bootstrap=5,
            quiet=True,
        )
        known = json.loads(own.report.read_text())
        key = "a" if side == "old" else "b"
        assert values["slide_auc"][key] == pytest.approx(known["slide_auc"]["value"])
        for name, froc in known["froc"].items():
            assert values["froc"][name][key] == pytest.approx(froc["score"])
            for point, share in froc["sensitivity_at"].items():
                assert values["froc"][name]["sensitivity_at"][point][key] == pytest.approx(share)
    froc = values["froc"][V1]
    assert froc["difference"] == pytest.approx(froc["b"] - froc["a"])
    assert froc["difference"] > 0
    assert froc["low"] <= froc["difference"] <= froc["high"]
    assert values["counts"]["lesions"] == 4
    assert values["tile_auroc"]["undefined"] == "detections come without tile scores"


def test_the_same_inputs_give_the_same_files_and_a_table(study):
    result, _ = run(study)
    first = [path.read_bytes() for path in (result.report, result.table)]
    result, _ = run(study)
    assert first == [path.read_bytes() for path in (result.report, result.table)]
    assert {path.name for path in (study / "out").iterdir()} == {
        "comparison.json",
        "comparison.md",
    }
    table = result.table.read_text(encoding="utf-8")
    assert table.count("| FROC") == 2
    assert "no slide was excluded" in table
    lines = result.summary.splitlines()
    assert lines[0] == "no slide was excluded"
    assert lines[3].split() == ["figure", "a", "b", "b", "-", "a", "95", "%", "p"]
    assert lines[4].startswith("slide AUC")


def test_results_and_detections_are_compared_on_one_truth(study):
    text = (study / "results_old/slides.csv").read_text()
    # Only this side knows the scale: lesions of the other are found at the same.
    write(study / "results_old/slides.csv", text.replace("0.243", "0.486"))
    _, values = run(study, "results_old", "new", mask_downsample=32)
    assert values["counts"]["lesions"] == 4
    _, same = run(study, "results_old", "old", mask_downsample=32)
    for froc in same["froc"].values():
        assert froc["a"] == froc["b"]
        assert froc["difference"] == froc["low"] == froc["high"] == 0
        assert froc["p"] == 1


def outline(x, y, edge):
    corners = [(x, y), (x + edge, y), (x + edge, y + edge), (x, y + edge)]
    points = "".join(
        f'<Coordinate Order="{i}" X="{a}" Y="{b}"/>' for i, (a, b) in enumerate(corners)
    )
    return (
        '<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="_0">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations>"
        '<AnnotationGroups><Group Name="_0" PartOfGroup="None"/></AnnotationGroups>'
        "</ASAP_Annotations>"
    )


def test_tiles_of_results_are_compared_too(study):
    for number in range(4):
        write(study / f"xml/s{number}.xml", outline(1920, 1280, 1600))
    _, values = run(study, "results_old", "results_new", masks=None, annotations=study / "xml")
    # Tumour 0.3 or 0.7; healthy 1 of each slide, and 0.3 or 0.7 of those without tumour.
    assert values["tile_auroc"]["a"] == pytest.approx(0.5 * 4 / 12)
    assert values["tile_auroc"]["difference"] == 0


def test_other_slides_are_refused_by_name(study):
    (study / "new/s7.csv").unlink()
    with pytest.raises(EvaluationError, match=r"s7: has no results in .*new, but the other side"):
        run(study)
    with pytest.raises(EvaluationError, match=r"s7: has no results in .*new, but the other side"):
        run(study, "new", "old")
    _, values = run(study, exclude=["s7"])
    assert values["exclusions"]["all"] == ["s7"]
    assert values["counts"]["slides"] == 7


def test_slides_of_another_size_are_refused(study):
    text = (study / "results_new/slides.csv").read_text()
    write(study / "results_new/slides.csv", text.replace("6400,4480", "6400,4481", 1))
    with pytest.raises(EvaluationError, match=r"s0: is .*4480.* on the other"):
        run(study, "results_old", "results_new")


def test_a_result_is_not_compared_with_itself(study):
    with pytest.raises(EvaluationError, match="compared with itself"):
        run(study, "old", "old")


def test_another_slide_score_needs_results_on_both_sides(study):
    with pytest.raises(ConfigError, match="detections"):
        run(study, "results_old", "new", slide_score="top_k_mean")
    _, values = run(study, "results_old", "results_new", slide_score="top_k_mean")
    assert values["slide_auc"]["a"] is not None


def test_without_ground_truth_slides_are_compared(study):
    _, values = run(study, masks=None)
    assert values["slide_auc"]["p"] is not None
    assert "neither annotations nor masks" in values["froc"][V1]["undefined"]
    assert values["counts"]["lesions"] is None


def test_the_command_prints_the_table(study, capsys):
    arguments = ["compare", str(study / "old"), str(study / "new"), "--quiet"]
    arguments += ["--reference", str(study / "reference.csv"), "--masks", str(study / "masks")]
    arguments += ["--spacing-um", "0.243"]
    assert main([*arguments, "--out", str(study / "out"), "--bootstrap", "20"]) == 0
    out = capsys.readouterr().out
    assert "sensitivity at 0.25" in out
    assert f"see {study / 'out/comparison.json'}" in out
