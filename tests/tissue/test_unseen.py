"""A slide that could not be looked at is not one without tissue, and says why."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

import wsiad
from support.builders import ArraySlide, stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.cli import main
from wsiad.compute.batch import run_batch
from wsiad.core.errors import InputError
from wsiad.core.files import read_json, write_json
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import SlideRow, SlideTable, read_table
from wsiad.stain.profile import reference_profile
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow
from wsiad.tiling.plan import plan_slide
from wsiad.tiling.preparation import Preparation
from wsiad.tiling.verdict import why_unusable
from wsiad.tissue.mask import find_tissue
from wsiad.tissue.quality import LeftOut
from wsiad.tissue.tissue_options import TissueOptions

GLASS = (243, 243, 242)
INK = (20, 120, 60)
SIZE = 1024  # pixels at 1 µm/px: 128 of the mask's


@pytest.fixture(autouse=True)
def channel(monkeypatch):
    use_channel(monkeypatch)


def glass(size=SIZE, seed=0):
    """Glass with the noise of a camera."""
    noise = np.random.default_rng(seed).normal(0, 1, (size, size, 3))
    return (np.array(GLASS) + noise).clip(0, 255).astype(np.uint8)


def with_spot(colour, share=0.25, size=SIZE):
    """Glass with a square of one colour, a share of the slide."""
    image, edge = glass(size), round(size * share**0.5 / 8) * 8
    image[64 : 64 + edge, 64 : 64 + edge] = colour
    return image


def unseen(image, valid=None, mpp=1.0, **options):
    slide = ArraySlide(image, mpp=mpp, valid=valid)
    tissue = find_tissue(slide, TissueOptions(**options))
    assert not tissue.mask.any()
    return tissue.unseen


def reason(image, valid=None, *, tile=96, mpp=1.0, scale=1.0, **options):
    slide = ArraySlide(image, mpp=scale, valid=valid)
    preparation = Preparation.model_validate(
        {"mpp": mpp, "tile": tile, "stain": {"method": "none"}, **options}
    )
    plan = plan_slide(slide, preparation, target=reference_profile("none"))
    assert not len(plan)
    return why_unusable(plan, LeftOut())


def test_glass_was_seen():
    assert not unseen(glass())
    assert not unseen(np.full((SIZE, SIZE, 3), 255, np.uint8))
    assert reason(glass()) == ""


def test_dust_hides_no_tissue():
    """Smaller than the smallest piece of tissue, whatever its colour: glass all the same."""
    image = glass()
    for n, colour in enumerate([(30, 120, 60), (4, 4, 4), (160, 60, 140), (215, 25, 40)]):
        image[100:140, 100 + 200 * n : 140 + 200 * n] = colour
    assert not unseen(image)


def test_the_share_taken_for_pen_is_told():
    found = unseen(with_spot(INK))
    # The square and a rim of two of the mask's pixels around it.
    assert found.pen == pytest.approx(((512 + 32) / 1024) ** 2, abs=0.005)
    assert not found.missing + found.black + found.grey
    assert f"{100 * found.pen:.1f} % was taken for pen marks" in reason(with_spot(INK))


def test_missing_and_black_pixels_are_told():
    valid = np.ones((SIZE, SIZE), bool)
    valid[:, : SIZE // 2] = False
    assert unseen(glass(), valid).missing == 0.5
    assert "50.0 % of its pixels are missing in the file" in reason(glass(), valid)
    assert reason(glass(), np.zeros((SIZE, SIZE), bool)).endswith(
        "100 % of its pixels are missing in the file"
    )
    assert unseen(with_spot((3, 3, 3))).black == pytest.approx(0.25, abs=0.005)


def test_a_slide_without_colour_is_not_one_without_tissue():
    grey = cv2.cvtColor(stained(SIZE, SIZE, glass=256), cv2.COLOR_RGB2GRAY)
    image = np.repeat(grey[..., None], 3, axis=2)
    assert unseen(image).grey > 0.2
    assert "is darker than glass, without the colour of a stain" in reason(image)


def test_grey_tissue_on_tinted_glass_is_seen_to_be_something():
    image = glass()
    image[..., 2] -= 7  # tinted
    image[256:512, 256:512] = (120, 120, 116)
    assert unseen(image).grey == pytest.approx(1 / 16, abs=0.005)
    image[256:512, 256:500] = (243, 243, 235)  # an edge of a coverslip is left
    assert not unseen(image)


def test_colour_in_pieces_that_are_too_small_points_at_the_scale():
    """A slide stated ten times too fine: its tissue falls below the smallest piece."""
    image = glass()
    image[16:1000:100, 16:1000:100] = (150, 60, 140)
    for y in range(0, SIZE, 128):
        for x in range(0, SIZE, 128):
            image[y : y + 64, x : x + 64] = (150, 60, 140)
    found = unseen(image)
    assert found.scattered == pytest.approx(0.25, abs=0.03)
    assert "is its µm/px right? 1 µm/px by test" in reason(image)


def test_smaller_than_a_tile_says_both_sizes():
    said = reason(stained(180, 900), scale=0.5)
    assert "900 × 180 px at 0.5 µm/px by test make 450 × 90 px at 1 µm/px" in said
    assert "a tile has 96 × 96 px" in said
    assert "1024 × 1024 px at 0.0005 µm/px" in reason(glass(), scale=0.0005)


def test_smaller_than_a_pixel_of_the_mask_is_not_without_tissue():
    said = reason(stained(60, 60), tile=32, tissue={"mpp": 64})
    assert "smaller than a pixel of its tissue mask: 60 × 60 px" in said
    assert "one is 64 px" in said
    assert "--tissue-mpp" in said


def test_tissue_that_no_tile_holds_enough_of_says_the_largest_coverage():
    image = glass()
    image[:256, :256] = stained(256, 256)
    # Two tiles lie wholly within it; none reaches what is asked where tiles are larger.
    said = reason(image, tile=512, min_coverage=0.5)
    assert "6." in said.split(" %")[0]
    assert "the largest coverage is 0.2" in said
    assert "min_coverage is 0.5" in said


PLAIN = {"mpp": 1.0, "tile": 96, "stain": {"method": "none"}, "quiet": True}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write_tiff(folder / "glass.tif", glass(512), mpp=1.0)
    write_tiff(folder / "good.tif", stained(512, 512, glass=64), mpp=1.0)
    write_tiff(folder / "pen.tif", with_spot(INK, size=512), mpp=1.0)
    write_tiff(folder / "small.tif", stained(90, 400), mpp=1.0, levels=1)
    return folder


STATUS = {"glass": "no-tissue", "good": "ok", "pen": "unusable", "small": "unusable"}


def test_the_store_and_its_table_say_so_again_when_resumed(slides, tmp_path):
    for _ in range(2):
        result = wsiad.tile(slides=slides, out=tmp_path / "store", **PLAIN)
        rows = {row.slide: row for row in result.rows}
        assert {name: row.status for name, row in rows.items()} == STATUS
        assert "was taken for pen marks" in rows["pen"].reason
        assert "smaller than a tile: 400 × 90 px" in rows["small"].reason
        assert rows["glass"].reason.startswith("stains of") or rows["glass"].reason == ""
        assert not result.failed
        assert [row.slide for row in result.unusable] == ["pen", "small"]
        table = read_table(tmp_path / "store/slides.csv", TileRow)
        assert {row.slide: row.reason for row in table} == {n: r.reason for n, r in rows.items()}
    store = TileStore(tmp_path / "store")
    assert {slide.name: slide.status for slide in store} == STATUS
    assert store.slide("pen").reason == store.slide("pen").facts["reason"]
    assert read_json(tmp_path / "store/run.json", ValueError, remedy="")["slides_unusable"] == 2


def test_the_command_line_says_it_and_ends_with_1(slides, tmp_path, capsys):
    arguments = ["tile", str(slides), "--out", str(tmp_path / "s"), "--mpp", "1", "--tile", "96"]
    assert main([*arguments, "--stain-method", "none"]) == 1
    said = capsys.readouterr().err
    assert (
        "wsiad tile: 2 unusable (could not be looked at; may have tissue):\n  pen:   no tissue"
        in said
    )
    assert "FAILED" not in said


@pytest.mark.parametrize("stored", [False, True])
def test_heatmaps_of_slides_and_of_a_store_say_so_too(slides, tmp_path, stored):
    source = slides
    if stored:
        source = tmp_path / "store"
        wsiad.tile(slides=slides, out=source, **PLAIN)
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue={}, min_coverage=0.5)
    for _ in range(2):
        result = wsiad.heatmap(run=run, slides=source, out=tmp_path / "out", quiet=True)
        rows = {row.slide: row for row in result.rows}
        assert {name: row.status for name, row in rows.items()} == STATUS
        assert "was taken for pen marks" in rows["pen"].reason
        assert "smaller than a" in rows["small"].reason
        assert [row.slide for row in result.unusable] == ["pen", "small"]
        assert result.summary.startswith("1 of 4 slides scored; 1 without tissue; 2 unusable")
    table = read_table(tmp_path / "out/slides.csv", HeatmapRow)
    assert {row.slide: row.status for row in table} == STATUS


@pytest.mark.parametrize("stored", [False, True])
def test_a_slide_that_no_picture_can_be_made_of(tmp_path, stored):
    """Its mask, of 8 µm/px, has no pixel."""
    (tmp_path / "slides").mkdir()
    write_tiff(tmp_path / "slides/thin.tif", stained(300, 3), mpp=1.0, levels=1)
    write_tiff(tmp_path / "slides/dot.tif", stained(2, 2), mpp=1.0, levels=1)
    source = tmp_path / "slides"
    if stored:
        source = tmp_path / "store"
        wsiad.tile(slides=tmp_path / "slides", out=source, **PLAIN)
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue={}, min_coverage=0.5)
    result = wsiad.heatmap(run=run, slides=source, out=tmp_path / "out", quiet=True)
    assert [(row.slide, row.status) for row in result.rows] == [
        ("dot", "unusable"),
        ("thin", "unusable"),
    ]
    assert "3 × 300 px" in result.rows[1].reason


def test_windows_smaller_than_the_tiles_of_a_store(slides, tmp_path):
    """A slide without a place on the tiles' lattice has none on the windows' either."""
    wsiad.tile(slides=slides, out=tmp_path / "store", **PLAIN)
    run = make_run(tmp_path / "run", size=64, mpp=1.0, tissue={}, min_coverage=0.5)
    result = wsiad.heatmap(run=run, slides=tmp_path / "store", out=tmp_path / "out", quiet=True)
    assert {row.slide: row.status for row in result.rows} == STATUS


def test_tiles_without_pixels_are_no_glass(tmp_path, monkeypatch):
    """The overview shows tissue, and level 0 holds none of it."""
    import tifffile

    path = write_tiff(tmp_path / "s.tif", stained(512, 512, glass=64), mpp=1.0, levels=4)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        where = [(page.tags[name].valueoffset, page.tags[name].dtype) for name in
                 ("TileOffsets", "TileByteCounts")]  # fmt: skip
        count = len(page.dataoffsets)
    widths = {3: 2, 4: 4, 13: 4, 16: 8}
    with path.open("r+b") as file:
        for offset, kind in where:
            file.seek(offset)
            file.write(b"\0" * widths[int(kind)] * count)
    (row,) = wsiad.tile(slides=path, out=tmp_path / "store", **PLAIN).rows
    assert (row.status, row.tiles) == ("unusable", 0)
    assert row.missing > 0
    assert f"pixels are missing in {row.missing} (100 %)" in row.reason


def test_a_store_of_an_older_version_is_not_believed(slides, tmp_path):
    wsiad.tile(slides=slides / "glass.tif", out=tmp_path / "store", **PLAIN)
    path = TileStore(tmp_path / "store").folder("glass") / "zarr.json"
    values = read_json(path, ValueError, remedy="")
    del values["attributes"]["wsiad"]["seen"]
    write_json(path, values)
    slide = TileStore(tmp_path / "store").slide("glass")
    assert slide.status == "unusable"
    assert "tile it again" in slide.reason


def test_what_a_task_could_not_look_at_counts_as_such(tmp_path):
    """An error that means it gives the status, in the table as in the row."""
    table = SlideTable(tmp_path / "slides.csv", SlideRow)
    tasks = [Task(SlideInput(name, tmp_path / name)) for name in ("a", "b")]
    from wsiad.compute.compute_options import ComputeOptions

    rows = run_batch(
        grey, tasks, row=SlideRow, table=table, options=ComputeOptions(), label="x", quiet=True
    )
    assert [(row.slide, row.status, row.reason) for row in rows] == [
        ("a", "unusable", "16 bits"), ("b", "unusable", "16 bits")]  # fmt: skip
    with (tmp_path / "slides.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["unusable"] * 2


class Task:
    def __init__(self, slide):
        self.slide = slide


def grey(task):
    from wsiad.core.errors import UnusableSlideError

    raise UnusableSlideError("16 bits", subject=task.slide.name)


# What uses a store or results says so too


@pytest.fixture
def store(slides, tmp_path):
    """Of the module's slides, and a slide of which there is only a row: it is of 16 bits."""
    wsiad.tile(slides=slides, out=tmp_path / "store", **PLAIN)
    table = SlideTable(tmp_path / "store/slides.csv", TileRow)
    table.put(TileRow("deep", "unusable", "16 bits"), TileRow("text", "failed", "is not a slide"))
    return tmp_path / "store"


SAID = (
    "4 of the slides of {store} failed or could not be looked at:\n"
    "  deep: unusable: 16 bits\n  pen: unusable: no tissue was found"
)


def test_a_store_with_unseen_slides_is_trained_on_aloud(store, tmp_path):
    from wsiad.runs.run import RunFolder

    found = wsiad.train(store=store, out=tmp_path / "run", detector="gaussian", weights="wsiad",
                        quiet=True)  # fmt: skip
    assert found.summary.startswith(SAID.format(store=store))
    assert "  text: failed: is not a slide" in found.summary
    notes = RunFolder.open(tmp_path / "run").record().notes["slides_not_used"]
    assert set(notes) == {"deep", "text", "pen", "small", "glass"}
    assert notes["glass"] == "no tissue"
    assert notes["small"].startswith("unusable: it is smaller than a tile")


def test_tiles_of_such_a_store_are_scored_aloud(store, tmp_path):
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue={}, min_coverage=0.5)
    found = wsiad.score_tiles(run=run, store=store, out=tmp_path / "scores", quiet=True)
    assert found.summary.startswith(SAID.format(store=store))
    told = read_json(found.evaluation, ValueError, remedy="")["not_scored"]
    assert set(told) == {"deep", "text", "pen", "small"}


def test_a_heatmap_from_such_a_store_keeps_the_status(store, tmp_path):
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue={}, min_coverage=0.5)
    rows = wsiad.heatmap(run=run, slides=store, out=tmp_path / "out", quiet=True).rows
    assert {row.slide: row.status for row in rows} == STATUS | {
        "deep": "unusable", "text": "failed"}  # fmt: skip
    assert {row.slide: row.reason for row in rows}["deep"] == "16 bits"


def test_no_file_of_coordinates_says_that_there_is_nothing_on_such_a_slide(store, tmp_path):
    found = wsiad.export_tiles(store=store, out=tmp_path / "out", format="clam", quiet=True)
    assert [row.slide for row in found.unusable] == ["pen", "small"]
    assert {path.name for path in (tmp_path / "out").glob("*.h5")} == {"glass.h5", "good.h5"}


@pytest.fixture
def results(slides, tmp_path):
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue={}, min_coverage=0.5)
    wsiad.heatmap(run=run, slides=slides, out=tmp_path / "out", quiet=True)
    return tmp_path / "out"


def test_the_report_neither_ranks_them_nor_calls_them_without_findings(results):
    page = (results / "report.html").read_text()
    assert "2 slides could not be looked at</h2>" in page
    assert "2 slides were not assessed at all: pen, small." in page
    assert " windows · 2 unusable</div>" in page
    places = {}
    for row in page.split("<tr data-section")[1:]:
        name = row.split('data-search="')[1].split()[0]
        places[name] = row.split('<td class="number" data-value="')[1].split("</td>")[0]
    assert places == {"good": '1">1', "glass": '">–', "pen": '">–', "small": '">–'}
    assert '<td class="status bad">unusable</td>' in page


def test_the_viewer_does_not_rank_them_and_shows_all_of_them_as_not_assessed(results):
    from wsiad.verbs.view import viewed_slides
    from wsiad.viewing.viewed_slides import describe

    shown = {slide.name: slide for slide in viewed_slides(results)}
    assert {name: slide.rank for name, slide in shown.items()} == {
        "good": 1, "glass": None, "pen": None, "small": None}  # fmt: skip
    told = describe(shown["pen"], problem="", tile_size=256, overlap=0)
    assert "was taken for pen marks" in told["reason"]
    assert told["heatmap"] is None
    whole = [area for area in told["notAssessed"] if area["name"] == "not assessed: all"]
    (ring,) = whole[0]["rings"]
    assert np.min(ring, axis=0).tolist() == [0, 0]
    assert np.max(ring, axis=0).tolist() == [512, 512]
    assert not describe(shown["glass"], problem="", tile_size=256, overlap=0)["notAssessed"]


def test_a_store_s_report_shows_them_first(store):
    page = (store / "report.html").read_text()
    assert "2 slides could not be looked at</h2>" in page
    assert page.index('id="unusable"') < page.index("At a glance")


def test_they_get_no_p_value_and_are_no_reference(slides, results, tmp_path):
    healthy = tmp_path / "healthy"
    healthy.mkdir()
    write_tiff(healthy / "h.tif", stained(512, 512, seed=3, glass=64), mpp=1.0)
    write_tiff(healthy / "ink.tif", with_spot(INK, size=480), mpp=1.0)
    wsiad.heatmap(run=tmp_path / "run", slides=healthy, out=tmp_path / "ref", quiet=True)
    found = wsiad.significance(results=results, healthy=tmp_path / "ref", quiet=True)
    assert [row.slide for row in found.rows] == ["good"]
    lines = found.summary.splitlines()
    assert lines[0] == "3 of 4 slides have no score and therefore no p-value:"
    assert lines[1] == "  glass: no-tissue"
    assert lines[2].startswith("  pen: unusable: no tissue was found, but not all of it")
    told = read_json(found.report, ValueError, remedy="")
    assert {name: one["status"] for name, one in told["not_tested"].items()} == {
        "glass": "no-tissue", "pen": "unusable", "small": "unusable"}  # fmt: skip
    assert told["reference"]["names"] == ["h"]
    assert any("1 healthy slide of the reference could not be looked at (ink)" in warning
               for warning in found.warnings)  # fmt: skip
    for name in ("glass", "pen"):
        (healthy / f"{name}.tif").write_bytes((slides / f"{name}.tif").read_bytes())
    (healthy / "h.tif").unlink()
    wsiad.heatmap(run=tmp_path / "run", slides=healthy, out=tmp_path / "none", quiet=True)
    said = (
        r"none: holds no scored slide \(1 no-tissue, 2 unusable; ink: unusable: no tissue .*; "
        r"pen: unusable: no tissue .*\). See its slides.csv for all reasons"
    )
    with pytest.raises(InputError, match=said):
        wsiad.significance(results=results, healthy=tmp_path / "none", quiet=True)
    with pytest.raises(InputError, match=said):
        wsiad.significance(results=tmp_path / "none", healthy=tmp_path / "ref", quiet=True)


def test_evaluation_is_shown_in_the_report_with_what_it_leaves_out(results, tmp_path):
    (tmp_path / "ref.csv").write_text(
        "image,type\ngood,tumor\npen,tumor\nsmall,normal\nglass,normal\n"
    )
    wsiad.evaluate(results=results, reference=tmp_path / "ref.csv", quiet=True)
    page = (results / "report.html").read_text()
    assert (
        "Evaluation: 3 of 4 slides have no score (2 unusable, 1 no-tissue; 1 of them with tumour: "
        "pen), left out of the figures."
    ) in page
