"""Faults: killed and ended runs, two runs at once, slides that fail or change while read."""

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from support.stores import PLAIN, content
from wsiad.core import ownership as leftovers
from wsiad.core.errors import SlideReadError
from wsiad.core.files import atomic_file, atomic_folder
from wsiad.core.geometry import Size
from wsiad.core.ownership import clear_leftovers, owner
from wsiad.core.signals import Terminated, postponed, terminated
from wsiad.core.terminal import Progress
from wsiad.slides import openslide_backend
from wsiad.slides import tiff as jpeg_tiff_backend
from wsiad.slides.opening import open_slide
from wsiad.slides.slide_table import read_table
from wsiad.store import writer
from wsiad.store.tile_store import GROUPS, TileStore
from wsiad.verbs.tile import TileRow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = ["--mpp", "0.5", "--tile", "32", "--stain-method", "none", "--quiet"]
# The slides are smaller than the smallest piece of tissue.
OPTIONS += ["--tissue-min-area-um2", "0"]


def write_slide(path, number, *, compression="jpeg", edge=150):
    image = stained(edge + 7 * number, edge + 30, seed=number, glass=16)
    return write_tiff(path, image, mpp=0.5, levels=2, compression=compression)


@pytest.fixture
def slides(tmp_path):
    """One slide that is decoded directly, one that OpenSlide reads."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_slide(folder / "s0.tif", 0)
    write_slide(folder / "s1.tif", 1, compression="deflate")
    return folder


def tile(slides, out, **values):
    return wsiad.tile(slides=slides, out=out, **{**PLAIN, **values})


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


POINTS = """
import json, sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import write_points

write_points.warm_up()
{patch}
command = ["tile", {slides!r}, "--out", "{{out}}", *{options!r}]
found = write_points.enumerate_points(command, Path({out!r}), **{steps!r})
print(json.dumps(found))
"""


def points(folder, slides, *, patch="", options=(), **steps):
    """Cut a run short at some of its changes to the disk, run it again, and compare."""
    out = folder / "points"
    out.mkdir()
    script = POINTS.format(
        benchmarks=str(BENCHMARKS), patch=patch, slides=str(slides), out=str(out), steps=steps,
        options=[*OPTIONS, *options],
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_run_killed_at_any_change_is_mended_by_the_next(slides, tmp_path):
    found = points(tmp_path, slides, mode="kill", every=23)
    assert found["points"] > 100
    assert found["tried"] == found["cut"] > 5
    assert found["wrong"] == {}


@pytest.mark.slow
def test_a_disk_that_is_full_from_any_change_on_keeps_nothing_partial(slides, tmp_path):
    found = points(tmp_path, slides, mode="full", every=41, first=3)
    assert found["cut"] >= found["tried"] - 1  # the last change may need no room
    assert found["wrong"] == {}


@pytest.mark.slow
def test_a_slide_in_parts_killed_at_any_change_is_mended_by_the_next(tmp_path):
    small_shards = "from wsiad.store import group; group._CHUNK_BYTES = 32 * 32 * 3"
    slide = write_slide(tmp_path / "s.tif", 1, edge=200)
    found = points(
        tmp_path, slide, patch=small_shards, options=["--split-tiles", "1"],
        mode="kill", every=71,
    )  # fmt: skip
    assert found["points"] > 150  # two parts and their join
    assert found["tried"] == found["cut"]
    assert found["wrong"] == {}


@pytest.mark.slow
def test_runs_killed_at_random_times_are_mended_by_the_next():
    script = [sys.executable, BENCHMARKS / "faults.py", "--kills", "2", "--edge", "512"]
    done = subprocess.run([*script, "--slides", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills, 0 with differences" in done.stdout


TOGETHER = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import write_points

write_points.warm_up()
out, every = Path({out!r}), {every!r}
command = lambda slides: ["tile", *slides, "--out", str(out), *{options!r}]
whole = write_points.forked(command(every), out)
expected = write_points.tree(out)
found = [whole[0]]
def unexpected(said):
    ends = (str(out), "next: ")  # what was made, and what comes next
    return [line for line in said.splitlines() if not line.startswith(ends)]

for first, second in [(every, every), (every[:3], every[1:]), (every, every[::-1])] * 2:
    shutil.rmtree(out)
    runs = write_points.together([command(first), command(second)], out)
    # What the command was, and how many slides it had, is in these.
    own = ("config.yaml", "run.json", "slides.csv")
    names = [name for name in write_points.differences(out, expected) if name not in own]
    found += [code or unexpected(said) for code, said in runs] + names
print(json.dumps([one for one in found if one]))
"""


def test_a_heatmap_killed_before_its_table_was_written_is_gone_on_with(
    slides, tmp_path, monkeypatch
):
    use_channel(monkeypatch)
    run, out = make_run(tmp_path / "run"), tmp_path / "results"
    wsiad.heatmap(run=run, slides=slides, out=out, quiet=True)
    (out / "slides.csv").unlink()  # the first slide is whole, and the table comes after it
    shutil.rmtree(out / "s1")
    rows = wsiad.heatmap(run=run, slides=slides, out=out, quiet=True).rows
    assert [row.status for row in rows] == ["ok", "ok"]
    assert (out / "s1" / "heatmap.ome.tif").exists()


@pytest.mark.slow
def test_two_runs_on_one_store_at_once(tmp_path):
    """The same slides, overlapping ones, and in the opposite order."""
    every = [
        str(write_slide(tmp_path / f"s{n}.tif", n, compression=("jpeg", "deflate")[n % 2]))
        for n in range(4)
    ]
    script = TOGETHER.format(
        benchmarks=str(BENCHMARKS), out=str(tmp_path / "store"), every=every, options=OPTIONS
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_what_the_dead_left_goes_and_what_the_living_write_stays(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from wsiad.core.ownership import owner\n"
        "out = Path(sys.argv[1])\n"
        "(out / f'.s.{owner()}.partial' / 'tiles').mkdir(parents=True)\n"
        "(out / f'.s.{owner()}.old').mkdir()\n"
        "(out / f'.{owner()}.partial.slides.csv').touch()\n"
        "print('made', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as living:
        assert living.stdout.readline() == b"made\n"
        (tmp_path / ".notes.partial").touch()  # of someone else
        assert clear_leftovers(tmp_path, tmp_path / "absent") == 0
        living.kill()
        living.wait()
    assert clear_leftovers(tmp_path, of="other") == 0
    assert clear_leftovers(tmp_path, of="s") == 2
    assert clear_leftovers(tmp_path) == 1
    assert hidden(tmp_path) == [".notes.partial"]


def test_a_process_number_given_again_is_another_process(tmp_path, monkeypatch):
    machine, process, start, _ = owner().split("-")
    assert int(process) == os.getpid()
    (tmp_path / f".s.{machine}-{process}-{int(start) - 1}-00000000.partial").mkdir()
    (tmp_path / f".s.{machine}-{process}-{start}-00000000.partial").mkdir()
    assert clear_leftovers(tmp_path) == 1


def test_a_lock_that_a_dead_process_held_is_taken_at_once(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from wsiad.core.ownership import locked\n"
        "with locked(Path(sys.argv[1])): os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / ".lock")], check=True)
    assert leftovers.is_dead((tmp_path / ".lock").read_text())
    assert not leftovers.is_dead(owner())
    # In a process that is ended if it waits for the lock to become stale.
    taken = "from pathlib import Path; from wsiad.core.ownership import locked; import sys\n"
    taken += "with locked(Path(sys.argv[1]), stale_seconds=1e6): print('taken')\n"
    done = subprocess.run(
        [sys.executable, "-c", taken, str(tmp_path / ".lock")],
        check=True, timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "taken\n"
    assert list(tmp_path.iterdir()) == []


def test_another_machine_is_given_a_day(tmp_path):
    folder = tmp_path / ".s.00000000-1-1-00000000.partial"
    (folder / "tiles").mkdir(parents=True)
    (folder / "tiles" / "c").touch()
    assert clear_leftovers(tmp_path) == 0
    long_ago = time.time() - leftovers.ABANDONED_SECONDS - 60
    os.utime(folder, (long_ago, long_ago))
    os.utime(folder / "tiles", (long_ago, long_ago))
    assert clear_leftovers(tmp_path) == 0  # the file is new: someone writes
    os.utime(folder / "tiles" / "c", (long_ago, long_ago))
    assert clear_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_taken_away_while_it_was_written_is_not_kept(tmp_path):
    """A writer that makes folders as it goes would keep a part of it as if it were whole."""
    with pytest.raises(FileNotFoundError, match="removed while it was written"):
        with atomic_folder(tmp_path / "s") as folder:
            (folder / "first").touch()
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "second").touch()
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_that_may_not_replace(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "first").touch()
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "s", replace=False) as folder:
        (folder / "second").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["s", "first"]


def test_names_of_partial_files_fit_the_longest_name(tmp_path):
    name = "x" * 200  # what checked_name allows
    with atomic_folder(tmp_path / name):
        pass
    with atomic_file(tmp_path / f"{name}.c") as partial:
        partial.touch()
    assert len(list(tmp_path.iterdir())) == 2


# Reading


def damage(path, there, monkeypatch):
    """Let a slide's level 0 be unreadable until the handle was opened so many times more."""
    good, opened = path.read_bytes(), []
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    middle = len(good) // 3
    bad = good[:middle] + bytes(middle) + good[2 * middle :]
    whole = openslide_backend._open

    def write(data):
        path.write_bytes(data)
        os.utime(path, ns=times)

    def reopened(*args):
        opened.append(1)
        if len(opened) > there:
            write(good)
        return whole(*args)

    write(bad)
    monkeypatch.setattr(openslide_backend, "_open", reopened)
    return opened


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_a_read_error_that_passes_does_not_fail_the_slide(tmp_path, monkeypatch, compression):
    """OpenSlide's handle fails for ever after one error; a new one reads."""
    path = write_slide(tmp_path / "s.tif", 0, compression=compression, edge=400)
    with open_slide(path, backend="openslide") as slide:
        expected = slide.read_level(0, 0, 0, slide.size).rgb
    with open_slide(path, backend="openslide") as slide:
        opened = damage(path, 0, monkeypatch)
        got = slide.read_level(0, 0, 0, slide.size)
        np.testing.assert_array_equal(got.rgb, expected)
        assert len(opened) == 1


def test_a_read_error_that_stays_fails_with_its_place_and_once_only(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "s.tif", 0, compression="deflate", edge=400)
    with open_slide(path, backend="openslide") as slide:
        opened = damage(path, 99, monkeypatch)
        with pytest.raises(SlideReadError, match=r"^s: level 0 .* level-0 position \(0, 128\)"):
            slide.read_level(0, 0, 128, Size(200, 200))
        assert len(opened) == 1  # to look again; OpenSlide is not asked for what is damaged
        slide.read_level(1, 0, 0, slide.levels[1].size)


@pytest.fixture
def network(monkeypatch):
    """Let reads of tiles that are decoded directly fail as those of a network do."""
    whole, fails = os.pread, []

    def pread(handle, count, offset):
        if fails and fails.pop(0):
            raise OSError(errno.EIO, "Input/output error")
        return whole(handle, count, offset)

    monkeypatch.setattr(jpeg_tiff_backend.os, "pread", pread)
    return fails


def test_a_direct_read_is_tried_again_and_then_left_to_openslide(tmp_path, network):
    path = write_slide(tmp_path / "s.tif", 0, edge=400)
    with open_slide(path, backend="jpeg-tiff") as slide:
        expected = slide.read_level(0, 0, 0, slide.size).rgb
    for errors in ([False, True, False, True], [False, True, True, False]):
        with open_slide(path, backend="jpeg-tiff") as slide:
            network += errors
            got = slide.read_level(0, 0, 0, slide.size)
            np.testing.assert_array_equal(got.rgb, expected)
            assert network == []


def test_the_place_of_a_read_error_is_in_level0_pixels(tmp_path):
    path = write_slide(tmp_path / "s.tif", 0, edge=400)
    with open_slide(path, backend="jpeg-tiff") as slide:
        tiles = slide._layout[1]
        times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        with path.open("r+b") as file:
            file.seek(int(tiles.offsets[1]))
            file.write(bytes(int(tiles.counts[1])))
        os.utime(path, ns=times)
        with pytest.raises(SlideReadError, match=r"level 1 .* level-0 position \(256, 0\)"):
            slide.read_level(1, 130, 5, Size(20, 20))


CHANGES = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 4),
    "replaced": lambda path: write_slide(path.with_name("new"), 7, edge=400).replace(path),
    "appended": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "rewritten": lambda path: path.write_bytes(path.read_bytes()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_a_slide_that_changes_while_it_is_read_is_not_stored(
    tmp_path, monkeypatch, change, compression
):
    path = write_slide(tmp_path / "s.tif", 0, compression=compression, edge=400)
    other = write_slide(tmp_path / "other.tif", 1)
    whole = writer.stream

    def changing(plan, **values):
        for number, block in enumerate(whole(plan, **values)):
            yield block
            if plan.scaled.slide.name == "s" and number == 1:
                CHANGES[change](path)

    monkeypatch.setattr(writer, "stream", changing)
    monkeypatch.setattr("wsiad.tiling.stream._BLOCK_PX", 128)
    monkeypatch.setattr(jpeg_tiff_backend, "CACHE_BYTES", 0)
    result = tile([path, other], tmp_path / "store")
    assert [(row.slide, row.status) for row in result.rows] == [("other", "ok"), ("s", "failed")]
    reason = result.rows[1].reason
    assert "changed while it was read" in reason or "cannot be read any more" in reason, reason
    assert "run again" in reason
    assert TileStore(tmp_path / "store").names() == ["other"]
    assert hidden(tmp_path / "store") == []


# An orderly end


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """A slide that is soon done, and one that is not before a signal comes."""
    folder = tmp_path_factory.mktemp("lasting")
    write_slide(folder / "s0.tif", 0, compression="deflate")
    image = np.tile(stained(300, 300, seed=1, glass=16), (8, 8, 1))
    write_tiff(folder / "s1.tif", image, mpp=0.5, levels=2, compression="deflate")
    return folder


@pytest.mark.parametrize("group", [False, True], ids=["main", "group"])
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_an_ended_run_clears_up_and_says_how_to_go_on(lasting, tmp_path, number, code, said, group):
    """SIGTERM is what a batch system sends before its time is over, SIGINT is Ctrl-C."""
    command = [sys.executable, "-m", "wsiad.cli", "tile", lasting, *OPTIONS]
    out = tmp_path / "store"
    with subprocess.Popen(
        [*command, "--out", out], start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as running:
        until = time.monotonic() + 60
        while not list(out.glob("slides.zarr/.s1.*.partial")):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        (os.killpg if group else os.kill)(running.pid, number)
        _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert f"wsiad tile: {said}; finished work is kept. Run the same command again" in err
    assert "Traceback" not in err
    assert hidden(out) == []
    assert TileStore(out).names() == ["s0"]
    assert [row.slide for row in read_table(out / "slides.csv", TileRow)] == ["s0"]
    if number == signal.SIGTERM and not group:
        subprocess.run([*command, "--out", out], check=True)
        subprocess.run([*command, "--out", tmp_path / "whole"], check=True)
        assert content(out / GROUPS) == content(tmp_path / "whole" / GROUPS)


class Converted:
    """A ctypes argument of which the conversion is where a signal comes, as in OpenSlide's."""

    number = signal.SIGTERM

    @classmethod
    def from_param(cls, value):
        signal.raise_signal(cls.number)
        return value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_became_another_error_ends_the_run(tmp_path, monkeypatch, number):
    """ctypes raises ArgumentError for whatever a conversion raises, KeyboardInterrupt too."""
    paths = [write_slide(tmp_path / f"s{at}.tif", at, compression="deflate") for at in range(3)]
    monkeypatch.setattr(Converted, "number", number)
    call = ctypes.CDLL(None).abs
    call.argtypes = [Converted]
    reading = openslide_backend.OpenSlideBackend.read_level

    def ended(slide, *args, **values):
        if slide.name == "s1":
            call(1)
        return reading(slide, *args, **values)

    monkeypatch.setattr(openslide_backend.OpenSlideBackend, "read_level", ended)
    with pytest.raises(KeyboardInterrupt) as raised, terminated():
        tile(paths, tmp_path / "store")
    assert raised.type is (Terminated if number == signal.SIGTERM else KeyboardInterrupt)
    assert TileStore(tmp_path / "store").names() == ["s0"]
    assert [row.slide for row in read_table(tmp_path / "store/slides.csv", TileRow)] == ["s0"]
    assert hidden(tmp_path / "store") == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_finaliser_dropped_ends_the_run():
    class Dropping:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    steps = []
    with pytest.raises(Terminated), terminated(), Progress("work", quiet=True) as progress:
        for at in range(3):
            if at == 1:
                Dropping()
            steps.append(at)
            progress.update()
    assert steps == [0, 1]
    with terminated():
        Progress("work", quiet=True).update()  # no signal of an earlier block is left


def test_signals_wait_for_the_end_of_a_block():
    steps = []
    with pytest.raises(Terminated), terminated():
        with postponed():
            signal.raise_signal(signal.SIGTERM)
            steps.append("went on")
        steps.append("never here")
    with pytest.raises(KeyboardInterrupt), postponed(), postponed():
        signal.raise_signal(signal.SIGINT)
        steps.append("also here")
    assert steps == ["went on", "also here"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
