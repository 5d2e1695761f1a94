"""Damaged artefacts: each reader names the file in one line, and never reads on."""

from __future__ import annotations

import http.client
import json
import shutil

import h5py
import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.config import read_yaml
from wsiad.core.errors import (
    ConfigError,
    EvaluationError,
    InputError,
    RunError,
    StoreError,
    WsiadError,
)
from wsiad.core.files import parse_json
from wsiad.core.yaml_text import parse
from wsiad.evaluation.submission import ScoredSlide
from wsiad.report.report import write_results_report
from wsiad.results.compared_slides import read_folder
from wsiad.runs.compatibility import run_preparation
from wsiad.runs.run import RunFolder
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.store.tile_store import TileStore
from wsiad.tiling.plan import read_corners


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, a run and results of two slides."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "slides").mkdir()
    for seed, name in enumerate(("one", "two"), start=1):
        image = stained(256, 256, seed=seed) // 4 + 20
        image[64:96, 64:128, 0] = 240
        write_tiff(folder / "slides" / f"{name}.tif", image, mpp=0.5, levels=1, tile=64)
    with pytest.MonkeyPatch.context() as patch:
        use_channel(patch)
        run = make_run(folder / "run")
        (run / "config.yaml").write_text("detector: channel\n")
        tissue = {"min_area_um2": 0, "smooth_um": 0, "remove_pen": False}
        wsiad.tile(
            slides=folder / "slides", out=folder / "store", mpp=0.5, tile=32, tissue=tissue,
            stain={"method": "none"}, min_coverage=0.01, quiet=True,
        )  # fmt: skip
        wsiad.heatmap(run=run, slides=folder / "slides", out=folder / "results", quiet=True)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy of one of the folders, to damage."""
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def damage(path, *keys, value):
    """Set a value in a JSON file; of the first bytes where there are no keys."""
    if not keys:
        data = path.read_bytes()
        path.write_bytes(value + data[len(value) :])
        return
    whole = json.loads(path.read_text())
    at = whole
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(whole))


def everything(store):
    for slide in TileStore(store):
        slide.tiles(0, len(slide))
        slide.quality()
        for name in ("position", "lattice", "coverage", "mask"):
            slide.column(name)
        repr((slide.left_out, slide.grid, slide.size, slide.bounds, slide.spacing))


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text
    assert error.value.subject
    assert error.value.remedy
    assert all(word in text for word in words), text


WSIAD = ("attributes", "wsiad")


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("one/zarr.json", ["attributes"], "\0"),
        ("one/zarr.json", WSIAD, []),
        ("one/zarr.json", [*WSIAD, "grid"], "\0"),
        ("one/zarr.json", [*WSIAD, "grid", "tile_px"], 2**31),
        ("one/zarr.json", [*WSIAD, "grid", "pixels"], [0, 0, 0, 0]),
        ("one/zarr.json", [*WSIAD, "tiles"], 10**9),
        ("one/zarr.json", [*WSIAD, "tiles"], -1),
        ("one/zarr.json", [*WSIAD, "slide"], {}),
        ("one/zarr.json", [*WSIAD, "slide", "size_px"], None),
        ("one/zarr.json", [*WSIAD, "slide", "spacing_um"], [1e308, 1]),
        ("one/zarr.json", [*WSIAD, "status"], "fine"),
        ("one/zarr.json", ["node_type"], "array"),
        ("one/zarr.json", ["consolidated_metadata"], {"kind": "inline"}),
        ("one/zarr.json", ["unknown"], 1),
        ("one/zarr.json", [], b"\xff\xff"),
        ("zarr.json", ["attributes"], None),
        ("zarr.json", [*WSIAD, "preparation"], 3),
        ("zarr.json", [*WSIAD, "stain_target"], {"stains": 1}),
        ("one/position/zarr.json", [], b"{{"),
        ("one/position/zarr.json", ["shape"], [10**12, 2]),
        ("one/position/zarr.json", ["data_type"], "int8"),
        ("one/position/zarr.json", ["chunk_grid", "configuration", "chunk_shape"], [2**40, 2]),
        ("one/coverage/zarr.json", ["chunk_key_encoding", "configuration", "separator"], "."),
        ("one/coverage/zarr.json", ["fill_value"], "NaN"),
        ("one/coverage/zarr.json", ["codecs"], 7),
        ("one/coverage/c/0", [], b"garbage!"),
        ("one/tiles/zarr.json", ["shape"], [3, 32, 32, 3]),
        ("one/tiles/zarr.json", ["chunk_key_encoding", "configuration", "separator"], "."),
        ("one/tiles/zarr.json", ["codecs"], []),
    ],
)
def test_a_damaged_store_is_an_error_that_names_the_place(copy, file, keys, value):
    store = copy("store")
    everything(store)
    damage(store / "slides.zarr" / file, *keys, value=value)
    with pytest.raises(StoreError) as error:
        everything(store)
    one_line(error, str(store))
    assert told(lambda: TileStore(store).check("one")) == told(
        lambda: TileStore(store).slide("one")
    )


def told(use):
    """What an error of a store says; empty if there is none."""
    try:
        use()
    except StoreError as error:
        return str(error)
    return ""


def test_positions_that_are_gone_are_not_all_zero(copy):
    store = copy("store")
    shutil.rmtree(store / "slides.zarr/one/position/c")
    with pytest.raises(StoreError, match="position: is damaged: a chunk is missing") as error:
        everything(store)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("calibration.json", b"[]"),
        ("calibration.json", b'{"format": 1' + b"0" * 5000 + b"}"),
        ("run.json", b"[" * 100_000),
        ("run.json", b'{"detector": "\\ud800"}'),
        ("detector.json", b'{"values": NaN}'),
        ("preparation.json", b'{"preparation": {}, "stain_target": {"lab": 7}}'),
        ("config.yaml", b"weights: rando\xe0m\n"),
        ("weights.safetensors", b"\xff" * 40),
    ],
)
def test_a_damaged_run_is_an_error_that_names_the_file(copy, monkeypatch, name, content):
    use_channel(monkeypatch)
    run = copy("run")
    (run / name).write_bytes(content)
    with pytest.raises(RunError, match=name) as error:
        RunFolder.open(run).load_detector("cpu")
        RunFolder.open(run).calibration()
        run_preparation(run)
    one_line(error, name)


def test_a_config_that_is_no_text_is_told_before_slides_are_scored(made, copy, monkeypatch):
    use_channel(monkeypatch)
    run = copy("run")
    (run / "config.yaml").write_bytes(b"a: \xe0\n")
    out = run.parent / "out"
    with pytest.raises(RunError, match=r"config\.yaml"):
        wsiad.heatmap(run=run, slides=made / "slides", out=out, quiet=True)
    assert not out.exists()


def header(descr, shape):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


FIELDS = "[" + ", ".join(f"('{n}', '<f8')" for n in ("x", "y", "width", "height", "score")) + "]"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 no archive",
        header(FIELDS, "(1000000000000,)"),
        header(FIELDS, "(-1,)"),
        header(FIELDS, "(1, 1)") + np.ones(5).tobytes(),
        header("'|O'", "(1,)") + bytes(8),
        header(FIELDS.replace("<f8", "|S8"), "(1,)") + np.ones(5).tobytes(),
        header("((((", "(1,)"),
        header(FIELDS, "(1,)") + np.array([0, 0, 32, np.nan, 1.0]).tobytes(),
        header(FIELDS, "(1,)") + np.array([0, 0, -32, 32, 1.0]).tobytes(),
        header(FIELDS, "(1,)") + np.array([0, 1e300, 32, 32, 1.0]).tobytes(),
        header(FIELDS, "(2,)") + np.ones(5).tobytes(),
    ],
)
def test_damaged_windows_are_an_error_and_take_no_memory(tmp_path, content):
    path = tmp_path / "windows.npy"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"windows\.npy") as error:
        ScoredSlide("one", tmp_path, windows=path).read_windows()
    one_line(error)


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("run.json", ["digest"], 3),
        ("run.json", ["run"], [[]]),
        ("run.json", ["detector"], None),
        ("run.json", ["versions"], "x"),
        ("one/slide.json", ["fingerprint"], {}),
        ("one/slide.json", ["row"], 7),
        ("one/slide.json", ["row", "score_max"], "x"),
    ],
)
def test_damaged_records_of_results_are_errors(copy, monkeypatch, file, keys, value):
    use_channel(monkeypatch)
    results = copy("results")
    damage(results / file, *keys, value=value)
    with pytest.raises(InputError) as error:
        read_folder(results)
    one_line(error, file)


def test_a_damaged_calibration_of_results_is_written_again_as_its_error_says(
    made, copy, monkeypatch
):
    use_channel(monkeypatch)
    results = copy("results")
    path = results / "calibration.json"
    whole, scored = path.read_bytes(), (results / "one" / "windows.npy").stat().st_mtime_ns
    for content in (b"{", b"{}"):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            wsiad.export(results=results, quiet=True)
        one_line(error, "calibration.json", "wsiad heatmap again")
        wsiad.heatmap(run=made / "run", slides=made / "slides", out=results, quiet=True)
        assert path.read_bytes() == whole
        assert (results / "one" / "windows.npy").stat().st_mtime_ns == scored


@pytest.mark.parametrize("content", [b"", b"{}", b'{"calibration": {}}'])
def test_a_damaged_calibration_of_neighbourhoods_names_its_file_and_the_remedy(copy, content):
    results = copy("results")
    (results / "scales.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        write_results_report(results)
    one_line(error, "scales.json", "--scales-um")


def test_a_report_of_results_without_their_run_is_refused(copy):
    results = copy("results")
    facts = json.loads((results / "run.json").read_text())
    facts["x"] = facts.pop("run")
    (results / "run.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"run\.json: is damaged: run") as error:
        write_results_report(results)
    one_line(error)


def ask(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", f"/{server.token}/{path}")
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


@pytest.mark.parametrize(
    ("file", "keys", "value", "page"),
    [
        ("heatmap.json", ["level0_rectangle", "y"], [[[]]], "info"),
        ("heatmap.json", ["colour_scale", "steps", 1], "nan", "info"),
        ("heatmap.json", ["bounds"], {}, "info"),
        ("heatmap.json", ["bounds", "x"], float("nan"), "info"),
        ("heatmap.json", [], b"\xff", "info"),
        ("lesions.geojson", ["features", 0, "properties"], None, "info"),
        ("lesions.geojson", ["features", 0, "geometry", "coordinates"], [[["x", 1]]], "info"),
        ("lesions.geojson", ["features", 0, "geometry"], [], "info"),
        ("heatmap.ome.tif", [], b"II*\0\xff\xff\xff\xff", "scores"),
    ],
)
def test_the_viewer_answers_damage_in_one_line_and_shows_the_other_slides(
    copy, serve, file, keys, value, page
):
    results = copy("results")
    damage(results / "one" / file, *keys, value=value)
    server = serve(results)
    names = [s["name"] for s in json.loads(ask(server, "slides.json")[1])["slides"]]
    status, body = ask(server, f"slide/{names.index('one') + 1}/{page}")
    assert status == 500
    assert file in body
    assert "\n" not in body
    assert ask(server, f"slide/{names.index('two') + 1}/{page}")[0] == 200


def test_a_page_that_fails_for_any_reason_is_answered(made, serve, monkeypatch):
    server = serve(made / "results")
    monkeypatch.setattr(server.pages, "answer", lambda path: 1 / 0)
    assert ask(server, "slides.json")[0] == 500


def test_damaged_heaps_of_coordinates_are_errors(made, tmp_path):
    path = tmp_path / "one.h5"
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=np.arange(400).reshape(200, 2))
        coords.attrs["patch_size_level0"] = 32
    data, refused = path.read_bytes(), []
    with open_slide(made / "slides/one.tif") as slide:
        scaled = ScaledSlide(slide, 0.5)
        for at in range(0, min(len(data), 2600), 7):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                read_corners(path, scaled, tile=32)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 30
    assert all(str(path) in text and "\n" not in text for text in refused)


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 1",
        "? {a: b}\n: 1",
        "a: !!timestamp foo",
        "a: !!bool foo",
        "a: !!int ''",
        "a: " + "[" * 5000,
        "a: " + "[" * 100 + "]" * 100,
        'a: "\\ud800"',
        "a: &a [*a]",
        "a0: &a0 [x]\n"
        + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)),
        "a: !!python/object:os.system {}",
        "a: 1\na: 2",
        "a: \0",
    ],
)
def test_yaml_that_is_none_is_one_line(tmp_path, text):
    with pytest.raises(ValueError, match=r".") as error:
        parse(text)
    assert "\n" not in str(error.value)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml") as error:
        read_yaml(path)
    assert isinstance(error.value, WsiadError)


@pytest.mark.parametrize(
    "text", ["[" * 100 + "]" * 100, "[" * 10**5, "1e999", "NaN", "9" * 30, '"\\ud83d"', "{", ""]
)
def test_json_that_no_writer_of_ours_makes_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json('{"a": [1, 2.5, "\\ud83d\\ude00", null]}') == {"a": [1, 2.5, "😀", None]}
