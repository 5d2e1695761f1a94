"""`wsiad significance` end to end: numbers by counting, what is refused, what is shown."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import wsiad
from support.builders import write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import ConfigError, ExportError, InputError
from wsiad.core.files import fingerprint
from wsiad.results.region_table import read_regions

STEP = 32  # edge of a window, pixels
USED = "sha256:used"


def slide_image(*patches, seed=0):
    """Tissue of red 40 to 70, with windows of higher red; above 99.9 is a region."""
    rng = np.random.default_rng(seed)
    image = np.zeros((6 * STEP, 8 * STEP, 3), np.uint8)
    cells = rng.integers(40, 71, size=(6, 8)).astype(np.uint8)
    for number, red in enumerate(patches):
        cells[1 + number % 2 * 3, 1 + 2 * number % 7] = red
    image[..., 0] = np.kron(cells, np.ones((STEP, STEP), np.uint8))
    image[..., 1] = 30
    return image


def write_slides(folder, slides):
    folder.mkdir()
    for number, (name, patches) in enumerate(slides.items()):
        seed = sum(map(ord, folder.name)) * 100 + number
        write_tiff(folder / f"{name}.tif", slide_image(*patches, seed=seed), mpp=0.5, levels=1)
    return folder


HEALTHY = {"h0": [], "h1": [105], "h2": [110, 103], "h3": [], "h4": [120], "h5": [],
           "h6": [101, 102, 103], "h7": [], "h8": [130]}  # fmt: skip
TESTED = {"calm": [], "usual": [108], "strange": [200, 190, 104], "edge": [130]}
CHECK = {"c0": [], "c1": [107], "c2": [], "c3": [115], "c4": []}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Results of tested slides, of healthy ones and of those to check with."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        use_channel(patch)
        run = make_run(folder / "run", slides={"fit": {"train": USED}})
        for name, slides in (("tested", TESTED), ("healthy", HEALTHY), ("check", CHECK)):
            path = write_slides(folder / f"{name}_slides", slides)
            if name == "healthy":
                glass = np.full((96, 96, 3), 243, np.uint8)
                write_tiff(path / "glass.tif", glass, mpp=0.5, levels=1)
            wsiad.heatmap(run=run, slides=path, out=folder / name, quiet=True)
    for picture in folder.glob("*/*/*.[ptj][npi][gf]"):
        if picture.parent.parent.name in ("tested", "healthy", "check"):
            picture.unlink()  # nothing here looks at them, and every test copies what is left
    return folder


@pytest.fixture
def here(scored, tmp_path):
    """A copy that a test may change."""
    for name in ("tested", "healthy", "check"):
        shutil.copytree(scored / name, tmp_path / name)
    return tmp_path


def compare(folder, **values):
    given = {"results": folder / "tested", "healthy": folder / "healthy", "quiet": True}
    return wsiad.significance(**{**given, **values})


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def maxima(results):
    return {row["slide"]: float(row["score_max"]) for row in table(results / "slides.csv")
            if row["status"] == "ok"}  # fmt: skip


def test_slides_regions_and_tiles_by_counting(here):
    result = compare(here, fdr=0.25)
    healthy = maxima(here / "healthy")
    assert len(healthy) == 9  # without the one of glass
    regions = {name: [r.max_score for r in read_regions(here / "healthy" / name / "regions.csv")]
               for name in healthy}  # fmt: skip
    assert sorted(map(len, regions.values())) == [0, 0, 0, 0, 1, 1, 1, 2, 3]
    tiles = {name: np.load(here / "healthy" / name / "windows.npy")["score"] for name in healthy}
    for row in result.rows:
        assert row.p_slide == (1 + sum(s >= row.score for s in healthy.values())) / 10
        folder = here / "tested" / row.slide
        found = read_regions(folder / "regions.csv")
        assert len(found) == row.regions == len(TESTED[row.slide])
        for one in found:
            top = sum(max(each, default=-1) >= one.max_score for each in regions.values())
            assert one.p_family_wise == (1 + top) / 10
            shares = (np.mean(np.array(each) >= one.max_score) for each in regions.values() if each)
            assert one.p == pytest.approx((1 + sum(shares)) / 10)
        windows = np.load(folder / "windows.npy")["score"]
        shares = sum((each >= windows[:, None]).mean(axis=1) for each in tiles.values())
        p = np.load(folder / "windows_p.npy")
        assert p.dtype == np.float64
        np.testing.assert_allclose(p, (1 + shares) / 10, rtol=1e-12)
    by_name = {row.slide: row for row in result.rows}
    assert by_name["strange"].p_slide == by_name["strange"].p_family_wise == 0.1
    assert by_name["edge"].p_slide == 0.2  # as high as the highest counts as healthy
    assert by_name["calm"].p_family_wise is None
    # p of 0.1, 0.1 and more over three regions: two at 0.15
    significant = [row.significant for row in read_regions(here / "tested/strange/regions.csv")]
    assert significant == [1, 1, 0]
    assert by_name["strange"].significant_regions == 2
    assert by_name["usual"].significant_regions == 0


def test_the_qupath_project_is_told(here):
    path = here / "tested" / "qupath" / "project.qpproj"
    before = json.loads(path.read_text())
    assert not any("wsiad: p" in image["metadata"] for image in before["images"])
    rows = {row.slide: row for row in compare(here, fdr=0.25).rows}
    after = json.loads(path.read_text())
    for old, image in zip(before["images"], after["images"], strict=True):
        facts = image["metadata"]
        one = rows.get(Path(image["imageName"]).stem)
        if one is None:  # nothing of it was scored
            assert image == old
            continue
        assert float(facts.pop("wsiad: p")) == one.p_slide
        assert facts.pop("wsiad: significant regions") == str(one.significant_regions)
        assert image == old
    path.unlink()
    compare(here)
    assert not path.exists()  # who does not want one gets none


def test_what_is_written_agrees(here):
    result = compare(here, check=here / "check", levels=[0.1, 0.3])
    facts = json.loads((here / "tested" / "significance.json").read_text())
    rows = table(here / "tested" / "significance.csv")
    assert [row["slide"] for row in rows] == sorted(TESTED) == list(facts["slides"])
    for row, one in zip(rows, result.rows, strict=True):
        assert float(row["p_slide"]) == one.p_slide == facts["slides"][one.slide]["p_slide"]
        assert row["p_family_wise"] == ("" if one.p_family_wise is None else str(one.p_family_wise))
    assert facts["reference"]["slides"] == 9
    assert facts["reference"]["not_used"] == {"glass": "no-tissue"}
    assert facts["reference"]["smallest_p"] == 0.1
    assert facts["reference"]["regions"] == 8
    assert [(a["kind"], a["level"]) for a in facts["false_alarms"]] == [
        ("slides", 0.1), ("tiles", 0.1), ("family-wise regions", 0.1),
        ("slides", 0.3), ("tiles", 0.3), ("family-wise regions", 0.3),
        ("significant regions", 0.1),
    ]  # fmt: skip
    healthy, checked = maxima(here / "healthy"), maxima(here / "check")
    p = [(1 + sum(h >= score for h in healthy.values())) / 10 for score in checked.values()]
    slides = [a for a in facts["false_alarms"] if a["kind"] == "slides"]
    assert [a["alarms"] for a in slides] == [sum(v <= 0.1 for v in p), sum(v <= 0.3 for v in p)]
    lesions = json.loads((here / "tested/strange/lesions.geojson").read_text())["features"]
    for lesion, row in zip(lesions, read_regions(here / "tested/strange/regions.csv"), strict=True):
        measured = lesion["properties"]["measurements"]
        assert measured["wsiad: max score"] == row.max_score
        assert measured["wsiad: p (family-wise)"] == row.p_family_wise
        assert (measured["wsiad: p"], measured["wsiad: q"]) == (row.p, row.q)
        assert measured["wsiad: significant"] == row.significant
    page = (here / "tested" / "report.html").read_text()
    assert "9 held-out healthy slides" in page
    assert "on 5 healthy slides" in page


def contents(folder):
    """All files but the project as it was before, which is kept beside it."""
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".backup"
    }


def test_again_gives_the_same_bytes_and_another_reference_renews_all(here):
    compare(here)
    first = contents(here / "tested")
    compare(here)
    assert contents(here / "tested") == first
    compare(here, healthy=here / "check")
    compare(here)
    assert contents(here / "tested") == first


def test_heatmap_does_the_same(scored, here, monkeypatch):
    use_channel(monkeypatch)
    compare(here)
    result = wsiad.heatmap(run=scored / "run", slides=scored / "tested_slides",
                           out=here / "direct", healthy=here / "healthy", quiet=True)  # fmt: skip
    for name in ("significance.csv", "strange/regions.csv", "strange/windows_p.npy",
                 "strange/lesions.geojson"):  # fmt: skip
        assert (here / "direct" / name).read_bytes() == (here / "tested" / name).read_bytes()
    assert "against 9 healthy ones" in result.summary
    assert "9 held-out healthy slides" in (here / "direct" / "report.html").read_text()
    # More slides later: the report says that they have no p-values.
    write_tiff(here / "late.tif", slide_image(seed=9), mpp=0.5, levels=1)
    wsiad.heatmap(run=scored / "run", slides=here / "late.tif", out=here / "direct", quiet=True)
    assert "1 slide was scored after" in (here / "direct" / "report.html").read_text()


def test_the_last_shard_compares(scored, here, monkeypatch):
    use_channel(monkeypatch)
    compare(here)

    def shard(number):
        return wsiad.heatmap(run=scored / "run", slides=scored / "tested_slides", quiet=True,
                             out=here / "sharded", healthy=here / "healthy",
                             shard=f"{number}/2")  # fmt: skip

    shard(1)
    assert not (here / "sharded" / "significance.json").exists()
    assert "against 9 healthy ones" in shard(2).summary
    one, two = (here / name / "significance.csv" for name in ("sharded", "tested"))
    assert one.read_bytes() == two.read_bytes()


def test_heatmap_without_a_scored_slide_compares_nothing(scored, here, monkeypatch):
    use_channel(monkeypatch)
    write_tiff(here / "glass.tif", np.full((96, 96, 3), 243, np.uint8), mpp=0.5, levels=1)
    result = wsiad.heatmap(run=scored / "run", slides=here / "glass.tif", out=here / "none",
                           healthy=here / "healthy", quiet=True)  # fmt: skip
    assert not result.failed
    assert not (here / "none" / "significance.json").exists()


def test_heatmap_refuses_a_wrong_reference_before_it_scores(scored, here, monkeypatch):
    use_channel(monkeypatch)
    with pytest.raises(InputError, match="another run or of other options"):
        wsiad.heatmap(run=scored / "run", slides=scored / "tested_slides", out=here / "direct",
                      healthy=here / "healthy", stride=16, quiet=True)  # fmt: skip
    assert not (here / "direct" / "strange").exists()


def relabel(results, **labels):
    path = results / "slides.csv"
    rows = table(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": labels.get(row["slide"], row["label"])} for row in rows)


def set_fingerprint(folder, mark):
    facts = json.loads((folder / "slide.json").read_text())
    (folder / "slide.json").write_text(json.dumps({**facts, "fingerprint": mark}))


@pytest.mark.parametrize("folder", ["healthy", "check"])
def test_slides_that_are_no_reference_are_refused_by_name(here, scored, folder):
    relabel(here / folder, **{f"{folder[0]}2": "tumor"})
    with pytest.raises(InputError, match=f"{folder[0]}2 of .*label 'tumor'"):
        compare(here, check=here / "check")
    relabel(here / folder, **{f"{folder[0]}2": "normal"})
    set_fingerprint(here / folder / f"{folder[0]}3", USED)
    with pytest.raises(InputError, match=rf"{folder[0]}3 of .*used for the run \(fit\)"):
        compare(here, check=here / "check")
    twin = fingerprint(scored / f"{folder}_slides" / f"{folder[0]}1.tif")
    set_fingerprint(here / folder / f"{folder[0]}3", twin)
    with pytest.raises(InputError, match=f"{folder[0]}3 of .*same slide as {folder[0]}1"):
        compare(here, check=here / "check")
    assert not (here / "tested" / "significance.json").exists()


def test_slides_may_not_be_compared_with_themselves(here, scored):
    tested = fingerprint(scored / "tested_slides" / "edge.tif")
    set_fingerprint(here / "check" / "c1", tested)  # a tested slide may be checked
    compare(here, check=here / "check")
    set_fingerprint(here / "healthy" / "h1", tested)
    with pytest.raises(InputError, match=r"h1 of .*is also in .*tested, as edge"):
        compare(here)
    shutil.rmtree(here / "healthy")
    shutil.copytree(scored / "healthy", here / "healthy")
    set_fingerprint(here / "check" / "c1", fingerprint(scored / "healthy_slides" / "h1.tif"))
    with pytest.raises(InputError, match=r"c1 of .*is also in .*healthy, as h1"):
        compare(here, check=here / "check")
    with pytest.raises(ConfigError, match="different folders"):
        compare(here, healthy=here / "tested")


def test_other_options_and_other_runs_are_named(scored, here, monkeypatch):
    use_channel(monkeypatch)
    slides = scored / "healthy_slides" / "h1.tif"
    wsiad.heatmap(run=scored / "run", slides=slides, out=here / "other", top_k=3, quiet=True)
    with pytest.raises(InputError, match=r"other: was not scored like .*top_k is 3 and not 10"):
        compare(here, healthy=here / "other", slide_score="top_k_mean")
    assert compare(here, healthy=here / "other").rows  # the highest score does not depend on it
    run = make_run(here / "run2", channel=1)
    wsiad.heatmap(run=run, slides=slides, out=here / "third", quiet=True)
    with pytest.raises(InputError, match=r"third: was not scored like .*by another run .*run2"):
        compare(here, healthy=here / "third")


def test_an_option_that_older_results_do_not_state_has_its_default(scored, here, monkeypatch):
    use_channel(monkeypatch)
    slides, other = scored / "healthy_slides" / "h1.tif", here / "other"
    wsiad.heatmap(run=scored / "run", slides=slides, out=other, stride=16, quiet=True)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("precision: run\n", ""))
    assert (other / "config.yaml").read_text() != text
    with pytest.raises(InputError, match=r"scored like \S+: stride is 16 and not None\. Score"):
        compare(here, healthy=other)
    wanted = {"run": scored / "run", "slides": slides, "out": other, "quiet": True, "stride": 16}
    with pytest.raises(InputError, match=r"other options: precision run \(now bf16\)\. "):
        wsiad.heatmap(**wanted, precision="bf16")
    assert not wsiad.heatmap(**wanted).failed  # and it is continued


def test_damage_is_told_and_nothing_is_claimed(here):
    compare(here)
    path = here / "tested" / "usual" / "windows.npy"
    windows = np.load(path)
    windows["score"][3] = np.nan
    np.save(path, windows)
    with pytest.raises(InputError, match="no finite score"):
        compare(here, fdr=0.2)
    # The folder is of two comparisons now: nothing says that it is of one.
    assert not (here / "tested" / "significance.json").exists()
    assert not (here / "tested" / "significance.csv").exists()


def test_what_is_missing_is_named(here):
    with pytest.raises(InputError, match="is not a results folder, but holds 3 of them"):
        compare(here, healthy=here)
    (here / "healthy" / "h2" / "regions.csv").unlink()
    with pytest.raises(InputError, match=r"h2: has no regions\.csv"):
        compare(here)
    shutil.rmtree(here / "tested" / "usual")
    with pytest.raises(InputError, match=r"usual: has no slide\.json"):
        compare(here)


def test_regions_that_do_not_fit_their_outlines(here):
    path = here / "tested" / "strange" / "lesions.geojson"
    collection = json.loads(path.read_text())
    path.write_text(json.dumps({**collection, "features": collection["features"][:1]}))
    with pytest.raises(ExportError, match=r"holds 1 region, but regions\.csv next to it holds 3"):
        compare(here)
    (here / "healthy" / "h2" / "regions.csv").write_text("rank,x\n1,a\n")
    with pytest.raises(ExportError, match="not a table of regions"):
        compare(here)


def test_a_reference_without_any_slide_or_region(here):
    for name in HEALTHY:
        if HEALTHY[name]:
            shutil.rmtree(here / "healthy" / name)
    rows = [row for row in table(here / "healthy" / "slides.csv") if not HEALTHY.get(row["slide"])]
    with (here / "healthy" / "slides.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = compare(here, fdr=0.3)
    strange = read_regions(here / "tested" / "strange" / "regions.csv")
    assert [row.p for row in strange] == [0.2] * 3  # four slides, none with a region
    assert [row.q for row in strange] == [0.2] * 3
    assert result.rows[-1].significant_regions == 1
    with (here / "healthy" / "slides.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["status"] != "ok")
    with pytest.raises(InputError, match="healthy: holds no scored slide"):
        compare(here)


def test_too_few_healthy_slides_are_a_warning(here):
    result = compare(here, fdr=0.05)
    assert any("needs at least 19" in text and "9 healthy slides" in text
               for text in result.warnings)  # fmt: skip
    assert result.warnings[0] in (here / "tested" / "report.html").read_text()
    assert f"WARNING: {result.warnings[0]}" in result.summary


def test_more_alarms_than_stated_are_a_warning(here, scored, monkeypatch):
    """Slides to check with that are not like the reference, as from another scanner."""
    use_channel(monkeypatch)
    loud = write_slides(here / "loud_slides", {f"l{n}": [150 + n] for n in range(8)})
    wsiad.heatmap(run=scored / "run", slides=loud, out=here / "loud", quiet=True)
    result = compare(here, check=here / "loud")
    more = [one for one in result.false_alarms if one.verdict == "more than stated"]
    assert {one.kind for one in more} == {"slides", "family-wise regions", "significant regions"}
    texts = [text for text in result.warnings if "more false alarms than stated" in text]
    assert len(texts) == 1
    assert all(one.words in texts[0] for one in more)
    assert "not like those of the reference" in texts[0]
    assert "slides, by their p                    0.1     1.000 (0.631 to 1.000)" in result.summary
    assert "more false alarms than stated" in (here / "tested" / "report.html").read_text()
    calm = compare(here, check=here / "check")
    assert not any("than stated" in text for text in calm.warnings)


def test_what_the_run_knows_of_tested_slides_is_told(here, scored, tmp_path):
    set_fingerprint(here / "tested" / "edge", USED)
    assert any("trained on slides that are tested: edge" in w for w in compare(here).warnings)
    facts = json.loads((here / "tested" / "run.json").read_text())
    (here / "tested" / "run.json").write_text(json.dumps({**facts, "run": str(tmp_path / "gone")}))
    assert any("it could not be checked" in text for text in compare(here).warnings)


def test_failed_healthy_slides_are_told(here):
    path = here / "healthy" / "slides.csv"
    path.write_text(path.read_text().replace("glass,no-tissue", "glass,failed"))
    assert any("1 healthy slide of the reference failed (glass)" in text
               for text in compare(here).warnings)  # fmt: skip


def test_the_other_slide_score(here):
    result = compare(here, slide_score="top_k_mean")
    healthy = [float(row["score_top_k_mean"]) for row in table(here / "healthy" / "slides.csv")
               if row["status"] == "ok"]  # fmt: skip
    for row in result.rows:
        assert row.p_slide == (1 + sum(score >= row.score - 1e-7 for score in healthy)) / 10
