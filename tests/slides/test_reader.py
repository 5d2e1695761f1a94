"""Slides read in a process of their own: what becomes of one that ends OpenSlide, or the reader."""

import os
import signal
import struct
import threading
import time

import numpy as np
import openslide
import pytest
import tifffile

import wsiad
from support.builders import stained, write_tiff
from support.stores import PLAIN
from wsiad.core.errors import SlideOpenError, SlideReadError
from wsiad.core.files import fingerprint
from wsiad.core.geometry import Size
from wsiad.slides import reader
from wsiad.slides.inspection import TileInspector
from wsiad.slides.opening import open_slide
from wsiad.slides.reader import ReadSlide
from wsiad.slides.slide_table import read_table
from wsiad.verbs.tile import TileRow

FIRST = 2**44
"""Bytes that the first tile of a level claims."""


def write_slide(path, *, seed=0, compression="jpeg"):
    return write_tiff(path, stained(300, 280, seed=seed, glass=16), compression=compression)


def write_claim(path):
    """Write a slide whose first tile claims terabytes: OpenSlide ends its process on it."""
    write_slide(path)
    with tifffile.TiffFile(path) as tiff:  # a BigTIFF: tags of 20 bytes
        tag = tiff.pages[0].tags["TileByteCounts"]
        counts = [FIRST, *tag.value[1:]]
    data = bytearray(path.read_bytes())
    struct.pack_into("<HHQQ", data, tag.offset, tag.code, 16, len(counts), len(data))
    path.write_bytes(data + struct.pack(f"<{len(counts)}Q", *counts))
    return path


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_slide_that_ends_openslide_is_a_row_in_turn_and_in_reruns(
    tmp_path, monkeypatch, looked_at
):
    """Also one whose tiles nobody can look at before OpenSlide does, as those of most formats."""
    if not looked_at:
        monkeypatch.setattr(TileInspector, "check", lambda self, *_: None)
    folder = tmp_path / "slides"
    folder.mkdir()
    write_slide(folder / "a.tif")
    write_claim(folder / "b.tif")
    write_slide(folder / "c.tif", seed=1, compression="deflate")
    for _ in range(2):
        done = wsiad.tile(slides=folder, out=tmp_path / "out", **PLAIN)
        rows = read_table(tmp_path / "out" / "slides.csv", TileRow)
        assert [(row.slide, row.status) for row in rows] == [
            ("a", "ok"), ("b", "failed"), ("c", "ok"),
        ]  # fmt: skip
        assert [row.slide for row in done.failed] == ["b"]
        assert "\n" not in rows[1].reason
        said = f": failed to allocate {FIRST} bytes)"
        assert ("a tile lies outside of the file" if looked_at else said) in rows[1].reason
        assert ("OpenSlide crashed (SIG" in rows[1].reason) == (not looked_at)


def test_what_a_crash_said_is_not_of_the_slide_before(tmp_path):
    bad, good = write_claim(tmp_path / "bad.tif"), write_slide(tmp_path / "good.tif")
    with pytest.raises(openslide.OpenSlideError, match="failed to allocate"):
        read(bad)
    slide = ReadSlide(good)
    slide._reader._process.kill()
    with pytest.raises(openslide.OpenSlideError, match=r"crashed \(SIGKILL\)$"):
        slide.read_rgba((0, 0), 0, (8, 8))
    slide.close()


def read(path):
    slide = ReadSlide(path)
    try:
        return slide.read_rgba((0, 0), 0, (64, 64)).copy()
    finally:
        slide.close()


def test_pixels_properties_and_errors_are_those_of_openslide(tmp_path):
    path = write_slide(tmp_path / "ä.tif", compression="deflate")
    with openslide.OpenSlide(path) as own:
        slide = ReadSlide(path)
        assert slide.properties == dict(own.properties)
        assert slide.dimensions == own.dimensions
        assert slide.level_dimensions == own.level_dimensions
        assert slide.level_downsamples == own.level_downsamples
        for at, level, size in [
            ((0, 0), 0, (300, 400)),
            ((-9, 5), 1, (50, 7)),
            ((0, 0), 2, (1, 1)),
        ]:
            expected = np.asarray(own.read_region(at, level, size))
            np.testing.assert_array_equal(slide.read_rgba(at, level, size), expected)
        assert slide.read_rgba((0, 0), 0, (0, 3)).shape == (3, 0, 4)
        slide.close()
    with pytest.raises(openslide.OpenSlideError, match="closed"):
        slide.read_rgba((0, 0), 0, (1, 1))
    (tmp_path / "text.tif").write_text("no slide")
    with pytest.raises(SlideOpenError, match="not a slide in any format"):
        open_slide(tmp_path / "text.tif")


def test_the_colour_profile_comes_along(tmp_path):
    profile = bytes(range(256)) * 2
    image = stained(64, 64)
    tifffile.imwrite(
        tmp_path / "s.tif", image, tile=(64, 64), photometric="rgb", iccprofile=profile,
        metadata=None,
    )  # fmt: skip
    slide = ReadSlide(tmp_path / "s.tif")
    with openslide.OpenSlide(tmp_path / "s.tif") as own:
        assert slide.profile == own.read_region((0, 0), 0, (1, 1)).info.get("icc_profile")
    slide.close()


def test_a_reader_is_used_again_and_replaced_when_it_has_ended(tmp_path):
    path = write_slide(tmp_path / "s.tif", compression="deflate")
    first = ReadSlide(path)
    number = first._reader._process.pid
    first.close()
    second = ReadSlide(path)
    assert second._reader._process.pid == number
    second.close()
    os.kill(number, signal.SIGKILL)  # while it waits
    os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
    third = ReadSlide(path)
    assert third._reader._process.pid != number
    third.close()


def test_slides_that_are_open_at_once_have_readers_of_their_own(tmp_path):
    path = write_slide(tmp_path / "s.tif", compression="deflate")
    one, other = ReadSlide(path), ReadSlide(path)
    assert one._reader is not other._reader
    one._reader._process.kill()
    assert other.read_rgba((0, 0), 0, (4, 4)).shape == (4, 4, 4)
    one.close()
    other.close()
    assert len(reader._idle) == 1


def test_a_reader_that_the_system_has_ended_costs_no_slide(tmp_path):
    path = write_slide(tmp_path / "s.tif", compression="deflate")
    with open_slide(path, backend="openslide") as slide:
        expected = slide.read_level(0, 10, 20, Size(30, 40)).rgb
        slide._handle._reader._process.kill()
        np.testing.assert_array_equal(slide.read_level(0, 10, 20, Size(30, 40)).rgb, expected)


def test_a_reader_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "s.tif", compression="deflate")
    with open_slide(path, backend="openslide") as slide:
        os.kill(slide._handle._reader._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(reader, "HOPELESS_SECONDS", 0.05)
        with pytest.raises(openslide.OpenSlideError, match="has not answered"):
            slide._handle.read_rgba((0, 0), 0, (8, 8))
        monkeypatch.setattr(reader, "HOPELESS_SECONDS", 60)
        assert slide.read_level(0, 0, 0, Size(8, 8)).rgb.shape == (8, 8, 3)


def test_an_interrupted_question_is_not_answered_to_the_next(tmp_path, monkeypatch):
    """Its answer would be taken for that of the question which follows."""
    path = write_slide(tmp_path / "s.tif", compression="deflate")
    with open_slide(path, backend="openslide") as slide:
        expected = slide.read_level(0, 50, 50, Size(20, 20)).rgb

        def interrupted(text):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(reader.json, "loads", interrupted)
            with pytest.raises(KeyboardInterrupt):
                slide.read_level(0, 0, 0, Size(20, 20))
        np.testing.assert_array_equal(slide.read_level(0, 50, 50, Size(20, 20)).rgb, expected)


def test_a_fork_has_readers_of_its_own(tmp_path):
    path = write_slide(tmp_path / "s.tif", compression="deflate")
    before = read(path)
    kept = ReadSlide(path)
    child = os.fork()
    if not child:
        code = 1
        try:
            kept.close()  # must not be heard by the other process' reader
            code = int(not np.array_equal(read(path), before))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(kept.read_rgba((0, 0), 0, (64, 64)), before)
    kept.close()


def test_a_region_beyond_the_readers_memory_is_refused(tmp_path):
    path = write_slide(tmp_path / "s.tif", compression="deflate")
    with (
        open_slide(path, backend="openslide") as slide,
        pytest.raises(SlideReadError, match="cannot be decoded"),
    ):
        slide.read_level(0, 0, 0, Size(2**17, 2**17))


def test_the_viewer_says_which_slide_it_cannot_show(tmp_path):
    from wsiad.viewing.deep_zoom import DeepZoom

    path = write_claim(tmp_path / "s.tif")
    fingerprint(path)
    zoom = DeepZoom()
    with pytest.raises(SlideReadError, match="OpenSlide crashed"):
        zoom.tile(path, 9, 0, 0)
    good = write_slide(tmp_path / "good.tif")
    assert zoom.tile(good, 8, 0, 0).startswith(b"\xff\xd8")


def test_a_reader_that_a_thread_waits_for_in_vain_is_ended():
    one, got = reader._taken(), []
    os.kill(one._process.pid, signal.SIGSTOP)  # as on a disk that is gone

    def ask():
        with pytest.raises(reader.ReaderCrash) as error:
            one.ask("close")
        got.append(str(error.value))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    while not one.busy:
        time.sleep(0.01)
    reader._give_back(one)
    thread.join(60)
    assert not one.alive
    assert "OpenSlide crashed" in got[0]
