"""A batch of slides: what it says while it runs, and what it leaves when it is stopped."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from wsiad.cli import _report
from wsiad.cluster.options import ComputeOptions
from wsiad.errors import SlideReadError
from wsiad.slides.inputs import SlideInput
from wsiad.stages.batch import record_path, run_batch, slides_of_shard
from wsiad.stages.slide_table import SlideTable, read_table
from wsiad.stages.tile import TileResult, TileRow


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
    assert _report("tile", TileResult(Path("store"), rows)) == 1
    lines = ["wsiad tile: 2 failed:", "  a:      first", "  longer: second"]
    assert capsys.readouterr().err.strip().splitlines() == lines


def test_shards_do_not_depend_on_the_order_of_the_slides():
    slides = [SlideInput(name, Path(name)) for name in "dbace"]
    names = [[slide.name for slide in slides_of_shard(slides, f"{part}/2")] for part in (1, 2)]
    assert names == [["a", "c", "e"], ["b", "d"]]
    assert slides_of_shard(slides, None) == slides
    assert record_path(Path("o"), "2/8") == Path("o/runs/shard-2-of-8.json")
    assert record_path(Path("o"), None) == Path("o/run.json")
