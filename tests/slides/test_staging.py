"""A slide on a local disk while it is read: whole, private, gone afterwards."""

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import wsiad
from support.builders import stained, write_tiff
from wsiad.compute.batch import with_staging
from wsiad.compute.compute_options import ComputeOptions
from wsiad.core.errors import SlideOpenError
from wsiad.core.files import fingerprint
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_files import slide_files
from wsiad.slides.slide_table import read_table
from wsiad.slides.staging import Staging, discard_staged, staged
from wsiad.verbs.tile import TileRow


@dataclass(frozen=True)
class FakeTask:
    slide: SlideInput
    staging: Staging | None = None


OPTIONS = {"mpp": 0.5, "tile": 32, "stain": {"method": "none"}, "tissue": {"min_area_um2": 0.0}}


def make(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_no_folder_is_the_slide_itself(tmp_path):
    with staged(tmp_path / "a.svs", None, name="a") as path:
        assert path == tmp_path / "a.svs"


def test_a_copy_has_the_name_and_the_bytes_and_is_deleted(tmp_path):
    slide = make(tmp_path / "slow" / "a.svs", "pixels")
    with staged(slide, Staging(tmp_path / "fast"), name="a") as path:
        assert path.name == "a.svs"
        assert path.parent.parent == tmp_path / "fast"
        assert fingerprint(path) == fingerprint(slide)
    assert list((tmp_path / "fast").iterdir()) == []
    assert slide.read_text() == "pixels"


def test_a_copy_is_deleted_when_the_work_fails(tmp_path):
    slide = make(tmp_path / "a.svs")
    with (
        pytest.raises(ZeroDivisionError),
        staged(slide, Staging(tmp_path / "fast"), name="a"),
    ):
        raise ZeroDivisionError
    assert list((tmp_path / "fast").iterdir()) == []


def test_what_belongs_to_a_slide_is_copied_with_it(tmp_path):
    mirax = make(tmp_path / "m.mrxs")
    make(tmp_path / "m" / "Slidedat.ini")
    make(tmp_path / "m" / "deep" / "Data0000.dat")
    make(tmp_path / "other.mrxs")
    with staged(mirax, Staging(tmp_path / "fast"), name="m") as path:
        found = {str(p.relative_to(path.parent)) for p in path.parent.rglob("*") if p.is_file()}
    assert found == {"m.mrxs", "m/Slidedat.ini", "m/deep/Data0000.dat"}

    dicom = make(tmp_path / "series" / "1.dcm")
    make(tmp_path / "series" / "0.dcm")
    assert slide_files(dicom) == [dicom, tmp_path / "series" / "0.dcm"]

    index = "[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=../../m.mrxs\nNone=gone.jpg\n"
    vms = make(tmp_path / "h" / "a.vms", index)
    make(tmp_path / "h" / "a.jpg")
    make(tmp_path / "h" / "b.jpg")
    assert slide_files(vms) == [vms, tmp_path / "h" / "a.jpg"]

    plain = make(tmp_path / "p.svs")
    assert slide_files(plain) == [plain]


def test_no_room_names_slide_and_remedy(tmp_path, monkeypatch):
    slide = make(tmp_path / "a.svs")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with (
        pytest.raises(SlideOpenError, match=r"^a: .* GiB.*Make room in .*--stage-dir"),
        staged(slide, Staging(tmp_path / "fast"), name="a"),
    ):
        pass
    assert list((tmp_path / "fast").iterdir()) == []


@pytest.mark.parametrize("damage", ["short", "other"])
def test_a_copy_that_differs_is_not_used(tmp_path, monkeypatch, damage):
    slide = make(tmp_path / "a.svs", "0123456789")

    def copy(source, to):
        to.write_text("01234" if damage == "short" else "987654321_")

    monkeypatch.setattr(shutil, "copyfile", copy)
    with (
        pytest.raises(SlideOpenError, match="a: cannot be copied"),
        staged(slide, Staging(tmp_path / "fast"), name="a"),
    ):
        pass
    assert list((tmp_path / "fast").iterdir()) == []


def test_a_missing_slide_is_an_error(tmp_path):
    with (
        pytest.raises(SlideOpenError, match=r"a: cannot be copied.*No such file"),
        staged(tmp_path / "gone.svs", Staging(tmp_path / "fast"), name="a"),
    ):
        pass


def test_the_next_slide_is_copied_while_this_one_is_worked_on(tmp_path):
    fast = tmp_path / "fast"
    slide, following = make(tmp_path / "a.svs", "a"), make(tmp_path / "b.svs", "b")
    with staged(slide, Staging(fast, following), name="a"):
        end = time.monotonic() + 60
        while not (ahead := list(fast.glob("*/b.svs"))) and time.monotonic() < end:
            time.sleep(0.01)
    assert ahead
    (copy,) = fast.glob("*/b.svs")
    inode = copy.stat().st_ino
    with staged(following, Staging(fast), name="b") as path:
        assert path.stat().st_ino == inode  # not copied again
        assert path.read_text() == "b"
    assert list(fast.iterdir()) == []


def test_a_slide_that_cannot_be_copied_ahead_does_not_disturb(tmp_path):
    fast, slide = tmp_path / "fast", make(tmp_path / "a.svs", "a")
    with staged(slide, Staging(fast, tmp_path / "gone.svs"), name="a") as path:
        assert path.read_text() == "a"
    assert list(fast.iterdir()) == []


def test_what_was_copied_ahead_and_not_read_is_discarded(tmp_path):
    fast = tmp_path / "fast"
    slide, following = make(tmp_path / "a.svs", "a"), make(tmp_path / "b.svs", "b")
    with staged(slide, Staging(fast, following), name="a"):
        pass
    assert len(list(fast.iterdir())) == 1
    discard_staged(fast)
    assert list(fast.iterdir()) == []


def test_copies_of_workers_that_were_killed_are_discarded(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                              capture_output=True, check=True).stdout  # fmt: skip
        host = socket.gethostname()
        kept = tmp_path / f"wsiad-stage.{host}.{alive.pid}.00"
        left = tmp_path / f"wsiad-stage.{host}.{int(dead)}.00"
        for folder in (kept, left):
            folder.mkdir()
            (folder / "a.tif").write_bytes(b"copy")
        discard_staged(tmp_path)
        assert list(tmp_path.iterdir()) == [kept]
        alive.communicate(b"\n")


def test_only_slides_that_one_process_reads_in_turn_are_copied_ahead(tmp_path):
    inputs = [
        SlideInput(name, tmp_path / name, problem="bad" if name == "d" else "") for name in "abcde"
    ]
    tasks = [FakeTask(slide) for slide in inputs]

    def following(**options):
        chosen = ComputeOptions(stage_dir=tmp_path, **options)
        return [
            task.staging.following and task.staging.following.name
            for task in with_staging(tasks, chosen, done=lambda task: task.slide.name == "b")
        ]

    assert following() == ["c", "c", "e", "e", None]
    assert following(shard="1/2") == ["c", "c", "e", "e", None]
    assert following(workers=2) == [None] * 5
    assert [task.staging for task in with_staging(tasks, ComputeOptions(), done=bool)] == [None] * 5


def test_what_a_dead_process_left_is_cleared_and_a_living_one_keeps_its_own(tmp_path):
    fast, host = tmp_path / "fast", socket.gethostname()
    dead = make(fast / f"wsiad-stage.{host}.{2**22 + 1}.abcd" / "a.svs")
    living = make(fast / f"wsiad-stage.{host}.{os.getppid()}.abcd" / "a.svs")
    elsewhere = make(fast / f"wsiad-stage.other-{host}.{2**22 + 1}.abcd" / "a.svs")
    foreign = make(fast / "mine.txt")
    with staged(make(tmp_path / "b.svs"), Staging(fast), name="b"):
        pass
    assert not dead.parent.exists()
    assert living.exists()
    assert elsewhere.exists()
    assert foreign.exists()


def test_a_store_is_the_same_with_and_without_staging(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(2):
        write_tiff(slides / f"s{number}.tif", stained(160, 160, seed=number), levels=1)
    make(slides / "bad.svs", "no slide")
    results = {}
    for name, staging in (("a", {}), ("b", {"stage_dir": tmp_path / "fast"})):
        wsiad.tile(slides=slides, out=tmp_path / name, quiet=True, **OPTIONS, **staging)
        root = tmp_path / name / "slides.zarr"
        stored = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        rows = read_table(tmp_path / name / "slides.csv", TileRow)
        results[name] = stored, [(row.slide, row.status, row.file) for row in rows]
    assert results["a"] == results["b"]
    assert list((tmp_path / "fast").iterdir()) == []
