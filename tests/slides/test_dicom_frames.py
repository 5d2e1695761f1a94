"""Frames of DICOM slides are looked at: damage that OpenSlide makes pixels of."""

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames

import wsiad
from support.builders import halve
from support.dicom_slides import write_level
from support.tiff_slides import smooth
from wsiad.core.errors import DirectReadError
from wsiad.core.geometry import Size
from wsiad.slides.dicom import read_frames
from wsiad.store.tile_store import TileStore

EDGE = 512
COLUMNS = EDGE // 128


@pytest.fixture
def slide(tmp_path):
    """A slide of two levels, 16 and 4 frames, in the files of which one may be changed."""
    image = smooth(EDGE, EDGE)
    image = np.clip(image, 0, 255).round().astype(np.uint8)
    write_level(tmp_path / "s" / "a" / "l0.dcm", image, series=7)
    write_level(tmp_path / "s" / "a" / "l1.dcm", halve(image), series=7, number=2, mpp=1.0)
    return tmp_path / "s" / "a"


def tile(slide, out, **options):
    given = {"mpp": 0.5, "tile": 64, "stain": {"method": "none"}, "quiet": True} | options
    (row,) = wsiad.tile(slides=[slide.parent], out=out, **given).rows
    return row


def write_frames(path, frames, **options):
    file = dcmread(path)
    file.PixelData = encapsulate(frames, **options)
    file["PixelData"].is_undefined_length = True
    file.save_as(path)


def frames_of(path):
    file = dcmread(path)
    return list(generate_frames(file.PixelData, number_of_frames=file.NumberOfFrames))


@pytest.mark.parametrize("table", [True, False])
def test_frames_lie_where_they_are_said_to(slide, table):
    frames = [frames_of(slide / name) for name in ("l0.dcm", "l1.dcm")]
    write_frames(slide / "l0.dcm", frames[0], has_bot=table)
    files, layout = read_frames(slide / "l1.dcm", [Size(EDGE, EDGE), Size(EDGE // 2, EDGE // 2)])
    assert [file.name for file in files] == ["l0.dcm", "l1.dcm"]
    for file, level, expected in zip(files, layout, frames, strict=True):
        data = file.read_bytes()
        places = zip(level.offsets.tolist(), level.counts.tolist(), strict=True)
        assert [data[at : at + count] for at, count in places] == expected


def test_frames_of_several_fragments_are_left_to_openslide(slide):
    frames = frames_of(slide / "l0.dcm")
    write_frames(slide / "l0.dcm", frames, fragments_per_frame=2)
    _, (level, _) = read_frames(slide / "l0.dcm", [Size(EDGE, EDGE), Size(EDGE // 2, EDGE // 2)])
    assert not level.counts.any()


def test_levels_that_are_not_one_file_are_not_looked_at(slide):
    with pytest.raises(DirectReadError, match="a level is not one DICOM file"):
        read_frames(slide / "l0.dcm", [Size(EDGE, EDGE), Size(100, 100)])


def spoil(path, kind, index):
    """Damage a frame so that OpenSlide still reads it."""
    frames = frames_of(path)
    length = len(frames[index])
    if kind == "tail of zeros":
        frames[index] = frames[index][: length // 2].ljust(length, b"\0")
    else:  # zeros are codes, of fewer bits than those that they replace: data are left over
        at = length // 2
        frames[index] = frames[index][:at] + bytes(600) + frames[index][at + 600 :]
    write_frames(path, frames)


@pytest.mark.parametrize("kind", ["tail of zeros", "zeros within"])
def test_zeros_in_a_frame_are_damage(slide, tmp_path, kind):
    whole = tile(slide, tmp_path / "whole")
    before = TileStore(tmp_path / "whole").slide("a").group
    spoil(slide / "l0.dcm", kind, COLUMNS + 1)  # x and y 128 to 256
    row = tile(slide, tmp_path / "store")
    assert row.status == "failed"
    assert "level 0 cannot be decoded" in row.reason
    row = tile(slide, tmp_path / "skip", damaged_tiles="skip")
    assert (row.status, row.tiles, row.damaged) == ("ok", whole.tiles - 4, 4)
    after = TileStore(tmp_path / "skip").slide("a").group
    x, y = before["position"][:].T
    kept = (x < 128) | (x >= 256) | (y < 128) | (y >= 256)
    np.testing.assert_array_equal(after["position"][:], before["position"][:][kept])
    np.testing.assert_array_equal(after["tiles"][:], before["tiles"][:][kept])


def test_zeros_in_a_frame_of_the_overview_are_damage(slide, tmp_path):
    whole = tile(slide, tmp_path / "whole")
    spoil(slide / "l1.dcm", "tail of zeros", 0)
    assert tile(slide, tmp_path / "store").status == "failed"
    row = tile(slide, tmp_path / "skip", damaged_tiles="skip")
    assert (row.status, row.tiles, row.damaged) == ("ok", whole.tiles, 0)
