"""Two runs that begin in one new folder at once, with other configurations."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from support.stores import PLAIN
from wsiad.core.errors import InputError, StoreMismatchError
from wsiad.core.files import new_file
from wsiad.results import identity
from wsiad.slides.slide_table import read_table
from wsiad.stain.profile import reference_profile
from wsiad.store import tile_store as store_module
from wsiad.store.tile_store import GROUPS, TileStore
from wsiad.tiling.preparation import Preparation
from wsiad.verbs.tile import TileRow

TARGET = reference_profile("none").to_dict()


def at_once(monkeypatch, module):
    """Let two threads look for what is there before either of them writes."""
    barrier, write = threading.Barrier(2, timeout=30), module.write_json

    def together(path, value):
        if not seen.setdefault(threading.get_ident(), []):
            seen[threading.get_ident()].append(path)
            barrier.wait()
        write(path, value)

    seen: dict[int, list] = {}
    monkeypatch.setattr(module, "write_json", together)


def outcomes(calls):
    def outcome(call):
        try:
            return call()
        except (StoreMismatchError, InputError) as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def test_one_of_two_configurations_creates_a_store_and_the_other_is_told(tmp_path, monkeypatch):
    at_once(monkeypatch, store_module)
    options = [Preparation(mpp=0.5, tile=32, min_coverage=share) for share in (0.5, 0.95)]
    found = outcomes([lambda one=one: TileStore.create(tmp_path, one, TARGET) for one in options])
    (made,) = [one for one in found if isinstance(one, TileStore)]
    (told,) = [one for one in found if not isinstance(one, TileStore)]
    assert TileStore(tmp_path).digest == made.digest
    shares = sorted([0.5, 0.95], key=lambda share: share != made.preparation.min_coverage)
    assert f"min_coverage is {shares[0]} in the store and {shares[1]} here" in str(told)
    assert [path.name for path in (tmp_path / GROUPS).iterdir()] == ["zarr.json"]


def test_two_runs_of_one_configuration_share_a_new_store(tmp_path, monkeypatch):
    at_once(monkeypatch, store_module)
    one = Preparation(mpp=0.5, tile=32)
    made, other = outcomes([lambda: TileStore.create(tmp_path, one, TARGET)] * 2)
    assert made.digest == other.digest


def test_one_of_two_scorings_takes_a_new_folder_and_the_other_is_told(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    slide = write_tiff(tmp_path / "s.tif", stained(150, 170, seed=1, glass=16), levels=1)
    runs = [make_run(tmp_path / f"run{channel}", channel=channel) for channel in (0, 1)]
    at_once(monkeypatch, identity)
    out = tmp_path / "results"
    found = outcomes(
        [
            lambda run=run: wsiad.heatmap(run=run, slides=[slide], out=out, quiet=True)
            for run in runs
        ]
    )
    (told,) = [one for one in found if isinstance(one, InputError)]
    assert "holds the scores of another run" in str(told)
    winner = next(run for run, one in zip(runs, found, strict=True) if one is not told)
    assert json.loads((out / "run.json").read_text())["run"] == str(winner)
    assert str(winner) in (out / "config.yaml").read_text()


def test_a_group_of_another_configuration_is_not_ok(tmp_path):
    slide = write_tiff(tmp_path / "s.tif", stained(150, 170, seed=1, glass=16), levels=1)
    store = tmp_path / "store"
    wsiad.tile(slides=[slide], out=store, **PLAIN)
    path = store / GROUPS / "s" / "zarr.json"
    facts = json.loads(path.read_text())
    facts["attributes"]["wsiad"]["digest"] = "sha256:of another"
    path.write_text(json.dumps(facts))
    with pytest.raises(StoreMismatchError, match=r"slide 's' was prepared with another config"):
        TileStore(store).slide("s")
    done = wsiad.tile(slides=[slide], out=store, **PLAIN)
    assert [row.slide for row in done.failed] == ["s"]
    (row,) = read_table(store / "slides.csv", TileRow)
    assert row.status == "failed"
    assert "another configuration" in row.reason


def test_a_new_file_is_whole_and_never_replaces(tmp_path):
    path = tmp_path / "folder" / "a.json"
    with new_file(path) as partial:
        partial.write_text("one")
    with pytest.raises(FileExistsError), new_file(path) as partial:
        partial.write_text("two")
    assert path.read_text() == "one"
    with pytest.raises(ValueError, match="no"), new_file(tmp_path / "b") as partial:
        raise ValueError("no")
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["a.json", "folder"]


def test_a_new_file_where_there_are_no_links(tmp_path, monkeypatch):
    def unsupported(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", unsupported)
    test_a_new_file_is_whole_and_never_replaces(tmp_path)
