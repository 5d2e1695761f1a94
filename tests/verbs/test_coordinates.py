"""`wsiad tile --coords`: tiles where CLAM or TRIDENT say; resume, bad input."""

import h5py
import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import ConfigError, InputError
from wsiad.store.tile_store import TileStore

PX = 32
CORNERS = np.array([[0, 0], [33, 7], [101, 50], [40, 120], [33, 7], [500, 0], [232, 168]])
CLAM = {"patch_size": PX, "patch_level": 0, "name": "s", "save_path": "/x"}
TRIDENT = {"patch_size": PX, "patch_size_level0": PX, "level0_magnification": 20,
           "target_magnification": 20, "overlap": 0}  # fmt: skip


@pytest.fixture
def slide(tmp_path):
    return write_tiff(tmp_path / "s.tif", stained(200, 264), mpp=0.5, levels=2)


def write(path, corners=CORNERS, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = corners
        file["coords"].attrs.update(attributes)
    return path.parent


def tile(slide, out, coords, **values):
    return wsiad.tile(**{
        "slides": slide, "out": out, "coords": coords, "mpp": 0.5, "tile": PX,
        "stain": {"method": "none"}, "tissue": {"min_area_um2": 0}, "quiet": True, **values,
    })  # fmt: skip


def reason(result):
    (row,) = result.failed
    return row.reason


@pytest.mark.parametrize(
    ("file", "attributes"),
    [("s.h5", CLAM), ("s_patches.h5", TRIDENT), ("patches/s.h5", CLAM),
     ("s.h5", {"patch_size": 16, "patch_level": 0, "custom_downsample": 2})],
)  # fmt: skip
def test_tiles_lie_where_they_are_asked_for(tmp_path, slide, file, attributes):
    write(tmp_path / "h5" / file, **attributes)
    result = tile(slide, tmp_path / "store", tmp_path / "h5")
    stored = TileStore(tmp_path / "store").slide("s")
    expected = {tuple(corner) for corner in CORNERS.tolist()} - {(500, 0)}
    position = stored.column("position").astype(int)
    assert {tuple(corner) for corner in position.tolist()} == expected
    assert len(stored) == len(expected)
    image = stained(200, 264)
    for (x, y), pixels in zip(position, stored.tiles(0, len(stored)), strict=True):
        np.testing.assert_array_equal(pixels, image[y : y + PX, x : x + PX])
    assert "1 tile left out" in result.rows[0].reason


def test_coarser_scale_and_round_trip(tmp_path, slide):
    wsiad.tile(slides=slide, out=tmp_path / "grid", mpp=0.8, tile=PX, min_coverage=0.9,
               stain={"method": "none"}, tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    first = TileStore(tmp_path / "grid").slide("s")
    for layout in ("clam", "trident"):
        wsiad.export_tiles(
            store=tmp_path / "grid", out=tmp_path / layout, format=layout, quiet=True
        )
        tile(slide, tmp_path / f"by-{layout}", tmp_path / layout, mpp=0.8)
        second = TileStore(tmp_path / f"by-{layout}").slide("s")
        lattice = first.column("lattice") * PX
        order = [np.lexsort(rows.T) for rows in (lattice, second.column("lattice"))]
        np.testing.assert_array_equal(lattice[order[0]], second.column("lattice")[order[1]])
        pixels = [s.tiles(0, len(s))[o] for s, o in zip((first, second), order, strict=True)]
        np.testing.assert_array_equal(*pixels)


OUTLINE = """<?xml version="1.0"?><ASAP_Annotations><Annotations>{}</Annotations><AnnotationGroups>
<Group Name="_0" PartOfGroup="None"/><Group Name="_2" PartOfGroup="None"/></AnnotationGroups>
</ASAP_Annotations>"""
AREA = (
    '<Annotation Name="a" Type="Polygon" PartOfGroup="{}"><Coordinates>{}</Coordinates>'
    "</Annotation>"
)


def outline(folder, *areas, name="s.xml"):
    """Write rectangles (group, x, y, x, y) as ASAP's XML."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(
        AREA.format(group, "".join(
            f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>'
            for k, (x, y) in enumerate([(a, b), (c, b), (c, d), (a, d)])
        ))
        for group, a, b, c, d in areas
    )  # fmt: skip
    (folder / name).write_text(OUTLINE.format(text))
    return folder


def test_outlines_choose_the_tiles_of_the_lattice_whose_centre_they_hold(tmp_path, slide):
    folder = outline(tmp_path / "xml", ("_0", 40, 10, 120, 90), ("_2", 90, 0, 200, 40))
    result = tile(slide, tmp_path / "store", folder)
    assert not result.failed, result.failed[0].reason
    stored = TileStore(tmp_path / "store").slide("s")
    position = {tuple(map(int, corner)) for corner in stored.column("position")}
    # Centres at 48, 80 and 112 px are within 40 to 120, rows at 16, 48 and 80; one is cut out.
    assert position == {(x, y) for x in (32, 64, 96) for y in (0, 32, 64)} - {(96, 0)}
    tile(slide, tmp_path / "grid", None)
    whole = TileStore(tmp_path / "grid").slide("s")
    assert stored.facts["stain"] == whole.facts["stain"]
    assert not tile(slide, tmp_path / "store", folder).failed
    outline(folder, ("_0", 40, 10, 60, 30))
    assert "tiled from other coordinates" in reason(tile(slide, tmp_path / "store", folder))


def test_outlines_that_cannot_be_used(tmp_path, slide):
    folder = outline(tmp_path / "out", ("_0", 1, 1, 9, 9))
    (row,) = tile(slide, tmp_path / "o", folder).rows
    assert row.tiles == 0
    assert "outlines name no tile" in row.reason
    outline(folder, ("_0", 1, 1, 90, 90), name="s.json")
    assert "several files of outlines: s.xml, s.json" in reason(tile(slide, tmp_path / "p", folder))
    (folder / "s.json").unlink()
    (folder / "s.xml").write_text("<ASAP")
    assert "s.xml" in reason(tile(slide, tmp_path / "q", folder))


def test_resume(tmp_path, slide):
    folder = write(tmp_path / "h5" / "s.h5", **CLAM)
    tile(slide, tmp_path / "store", folder)
    assert not tile(slide, tmp_path / "store", folder).failed
    assert "tiled from other coordinates" in reason(tile(slide, tmp_path / "store", None))
    write(tmp_path / "h5" / "s.h5", CORNERS[:2], **CLAM)
    assert "tiled from other coordinates" in reason(tile(slide, tmp_path / "store", folder))
    tile(slide, tmp_path / "plain", None)
    assert "tiled from other coordinates" in reason(tile(slide, tmp_path / "plain", folder))


def test_what_works_on_such_a_store(tmp_path, slide, monkeypatch):
    use_channel(monkeypatch)
    run = make_run(tmp_path / "run", size=PX, tissue={"min_area_um2": 0})
    tile(slide, tmp_path / "store", write(tmp_path / "h5" / "s.h5", **CLAM))
    scored = wsiad.score_tiles(
        run=run, store=tmp_path / "store", out=tmp_path / "scores", quiet=True
    )
    assert len(scored.groups[0].scores) == 5
    result = wsiad.heatmap(run=run, slides=tmp_path / "store", out=tmp_path / "h", quiet=True)
    assert "not on a lattice" in reason(result)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_folder_of_another_kind_is_told_once_before_the_work(tmp_path, slide, dry_run):
    tile(slide, tmp_path / "grid", None)
    wsiad.export_tiles(store=tmp_path / "grid", out=tmp_path / "images", quiet=True)
    kinds = {"images": "exported images of tiles", "grid": "a tile store",
             "gone": "there is nothing", "s.tif": "a slide"}  # fmt: skip
    for name, kind in kinds.items():
        message = f"{name}: is not a folder of coordinates or outlines, but {kind}"
        with pytest.raises(InputError, match=message):
            tile(slide, tmp_path / "store", tmp_path / name, dry_run=dry_run)
    assert not (tmp_path / "store").exists()
    # Outlines may lie beside their slides.
    assert not tile(slide, tmp_path / "store", outline(tmp_path, ("_0", 40, 10, 120, 90))).failed


def test_bad_input(tmp_path, slide):
    for number, (corners, attributes, message) in enumerate([
        (CORNERS, {**CLAM, "patch_size": 64}, "have 64 level-0 px.*--mpp 1, or --tile 64"),
        (CORNERS, {"patch_size": PX}, "do not state the patch size"),
        (CORNERS, {**CLAM, "patch_level": 9}, "do not state the patch size"),
        (CORNERS, {**CLAM, "patch_level": -1}, "do not state the patch size"),
        (CORNERS, {**CLAM, "patch_size": "big"}, "do not state the patch size"),
        (CORNERS, {**CLAM, "patch_size": np.nan}, "patch size is nan"),
        (CORNERS, {"patch_size_level0": -32}, "patch size is -32"),
        (CORNERS.astype(float), CLAM, "not integers"),
        (CORNERS[:, 0], CLAM, "not integers"),
        (CORNERS + 10_000, CLAM, "completely outside"),
        (CORNERS - 2**40, CLAM, "completely outside"),
    ]):  # fmt: skip
        folder = write(tmp_path / f"h{number}" / "s.h5", corners, **attributes)
        with pytest.raises(InputError, match=message):
            raise InputError(reason(tile(slide, tmp_path / f"o{number}", folder)))
    (tmp_path / "none").mkdir()
    assert "has neither coordinates" in reason(tile(slide, tmp_path / "o", tmp_path / "none"))
    (tmp_path / "none" / "s.h5").write_text("no")
    assert "cannot be read as HDF5" in reason(tile(slide, tmp_path / "o", tmp_path / "none"))
    with pytest.raises(ConfigError, match="leave out `stride`"):
        tile(slide, tmp_path / "o", tmp_path / "none", stride=16)
