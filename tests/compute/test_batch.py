"""A batch of slides: what it says while it runs, and what it leaves when it is stopped."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from wsiad.cli import _report
from wsiad.compute.batch import run_batch
from wsiad.compute.compute_options import (
    ComputeOptions,
    record_path,
    slides_of_call,
    slides_of_shard,
)
from wsiad.core.errors import InputError, SlideReadError
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import SlideTable, read_table
from wsiad.verbs.tile import TileResult, TileRow


@dataclass(frozen=True)
class Task:
    slide: SlideInput


def tasks(*names):
    return [Task(SlideInput(name, Path(f"{name}.svs"))) for name in names]


def work(task):
    if task.slide.name.startswith("bad"):
        raise SlideReadError("cannot be decoded", subject=task.slide.name)
    return TileRow(task.slide.name, "ok", tiles=500)


def batch(folder, names, *, function=work, **options):
    table = SlideTable(folder / "slides.csv", TileRow)
    return run_batch(
        function,
        tasks(*names),
        row=TileRow,
        table=table,
        options=ComputeOptions(**options),
        label="tile",
        quiet=False,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_one_line_tells_of_all_workers(tmp_path, capsys, workers):
    rows = batch(tmp_path, ["c", "bad", "a"], workers=workers)
    assert [row.slide for row in rows] == ["a", "bad", "c"]
    text = capsys.readouterr().err
    assert "FAILED bad" in text
    last = text.strip().splitlines()[-1]
    assert last.startswith("tile: 100%")
    assert "3/3" in last
    assert "1 failed, " in last
    assert " tiles/s, " in last


def test_rows_are_kept_when_it_is_stopped(tmp_path):
    def stop(task):
        if task.slide.name == "b":
            raise KeyboardInterrupt
        return work(task)

    with pytest.raises(KeyboardInterrupt):
        batch(tmp_path, ["bad", "a", "b", "c"], function=stop)
    rows = {row.slide: row.status for row in read_table(tmp_path / "slides.csv", TileRow)}
    assert rows == {"a": "ok", "bad": "failed"}


def test_what_failed_is_a_table_at_the_end(capsys):
    rows = (
        TileRow("a", "failed", "first"),
        TileRow("longer", "failed", "second"),
        TileRow("c", "ok"),
    )
    assert _report("tile", TileResult(Path("store"), rows=rows)) == 1
    lines = ["wsiad tile: 2 failed:", "  a:      first", "  longer: second"]
    assert capsys.readouterr().err.strip().splitlines() == lines


def test_shards_do_not_depend_on_the_order_of_the_slides():
    slides = [SlideInput(name, Path(name)) for name in "dbace"]
    names = [[slide.name for slide in slides_of_shard(slides, f"{part}/2")] for part in (1, 2)]
    assert names == [["a", "c", "e"], ["b", "d"]]
    assert slides_of_shard(slides, None) == slides


def test_the_record_of_a_part_of_the_slides_is_not_that_of_all():
    def path(**options):
        return record_path(Path("o"), ComputeOptions(**options))

    assert path() == Path("o/run.json")
    assert path(shard="2/8") == Path("o/runs/shard-2-of-8.json")
    assert path(only=("a",)) is None
    assert path(only=("a",), record="r.json") == path(record="r.json") == Path("r.json")


def test_a_call_takes_the_slides_that_are_named():
    slides = [SlideInput(name, Path(name)) for name in ("b", "patient/1", "a")]
    chosen = slides_of_call(slides, ComputeOptions(only=("patient/1", "b")))
    assert [slide.name for slide in chosen] == ["b", "patient/1"]
    assert slides_of_call(slides, ComputeOptions()) == slides
    chosen = slides_of_call(slides, ComputeOptions(only=("patient/1", "b"), shard="2/2"))
    assert [slide.name for slide in chosen] == ["patient/1"]
    with pytest.raises(InputError, match=r"no slide is named 'patient/2' \(did you mean"):
        slides_of_call(slides, ComputeOptions(only=("a", "patient/2")))


def deadly(task):
    """End the process, as a library that crashes does."""
    if task.slide.name == "b":
        os._exit(3)
    return TileRow(task.slide.name, "ok")


def in_a_fork(folder, function=deadly):
    """Run a batch in a process that it may end; its exit code."""
    child = os.fork()
    if not child:
        batch(folder, ["a", "b", "c"], function=function)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_slide_that_ends_the_process_ends_two_runs_and_no_more(tmp_path):
    """One death may be anyone's; of the second on, another process works on the slide."""
    assert in_a_fork(tmp_path) == in_a_fork(tmp_path) == 3
    rows = {row.slide: row for row in batch(tmp_path, ["a", "b", "c"], function=deadly)}
    assert {name: row.status for name, row in rows.items()} == {"a": "ok", "b": "failed", "c": "ok"}
    assert "its worker was lost 1 time" in rows["b"].reason
    assert [path.name for path in tmp_path.iterdir()] == ["slides.csv"]


def test_a_slide_on_which_processes_were_killed_is_done_all_the_same(tmp_path):
    assert in_a_fork(tmp_path) == in_a_fork(tmp_path) == 3
    processes = []

    def harmless(task):
        return TileRow(task.slide.name, "ok", reason=str(os.getpid()))

    for _ in range(2):
        rows = batch(tmp_path, ["a", "b", "c"], function=harmless)
        assert {row.status for row in rows} == {"ok"}
        processes.append([row.reason == str(os.getpid()) for row in rows])
    assert processes == [[True, False, True], [True, True, True]]  # its deaths are forgotten


def test_a_slide_that_needs_too_much_memory_is_one_line(tmp_path, caplog):
    def greedy(task):
        raise MemoryError("Unable to allocate 24.0 GiB")

    (row,) = batch(tmp_path, ["a"], function=greedy)
    assert row.status == "failed"
    assert row.reason.startswith("needs more memory than there is (Unable to allocate 24.0 GiB)")
    assert caplog.text == ""
