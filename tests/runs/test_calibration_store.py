"""``--calibration``: all slides of a store are fitted on, and other ones calibrate."""

import json

import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import ConfigError, InputError, StoreMismatchError
from wsiad.runs.split import split_all_to_fit

TILING = {"mpp": 0.5, "tile": 48, "tissue": {"min_area_um2": 0}, "quiet": True}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for number in range(5):
        write_tiff(folder / f"s{number}.tif", stained(160, 208, seed=number), mpp=0.5, levels=1)
    first = [folder / f"s{number}.tif" for number in range(3)]
    second = [folder / f"s{number}.tif" for number in (3, 4)]
    wsiad.tile(slides=first, out=folder / "fit", **TILING, stain={"method": "none"})
    wsiad.tile(slides=second, out=folder / "other", **TILING, stain={"method": "none"})
    return folder


def train(stores, out, **values):
    given = {"detector": "gaussian", "weights": "random", "calibration": stores / "other"}
    return wsiad.train(store=stores / "fit", out=out, quiet=True, **{**given, **values})


def test_all_slides_are_fitted_on_and_others_calibrate(stores, tmp_path):
    train(stores, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    uses = {use: sorted(slides) for use, slides in record["slides"].items()}
    assert uses == {"fit": ["s0", "s1", "s2"], "stop": ["s3", "s4"], "calibration": ["s3", "s4"]}
    assert record["split"].startswith("all 3 slides to fit; 2 slides of another store")
    assert sorted(record["stores"]) == ["fit", "other (calibration)"]
    calibration = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert calibration["n_slides"] == 2
    assert record["notes"]["healthy_maps"] == 2


def test_a_method_that_stops_by_held_out_tiles_is_refused(stores, tmp_path):
    options = {"input_px": 32, "layers": {"relu1_2": 1.0}, "batch": 4, "val_interval": 2}
    with pytest.raises(ConfigError, match="keep=last"):
        train(stores, tmp_path / "a", detector="dpa", options=options, max_steps=2)
    done = train(
        stores, tmp_path / "b", detector="dpa", options={**options, "keep": "last"}, max_steps=2
    )
    assert (done.steps, done.ended_by) == (2, "max-steps")


def test_slides_that_are_fitted_on_do_not_calibrate(stores, tmp_path):
    with pytest.raises(InputError, match="s0 is fitted on too"):
        train(stores, tmp_path / "a", calibration=stores / "fit")


def test_slides_whose_anomalies_are_learnt_from_do_not_calibrate(stores, tmp_path):
    listed = tmp_path / "slides.csv"
    for name, again in (("s4", True), ("s1", False)):
        listed.write_text(f"slide,label\n{stores / name}.tif,tumor\n")
        wsiad.tile(slides=[listed], out=tmp_path / name, **TILING, stain={"method": "none"})
        given = {"detector": "linear-probe", "anomalies": tmp_path / name}
        if again:
            with pytest.raises(InputError, match="s4 is fitted on too"):
                train(stores, tmp_path / "a", **given)
        else:
            assert train(stores, tmp_path / "b", **given).ended_by == "fitted"


def test_tiles_that_were_prepared_differently_are_refused(stores, tmp_path):
    slides = [stores / "s4.tif"]
    wsiad.tile(slides=slides, out=tmp_path / "x", **TILING, stain={"method": "macenko"})
    with pytest.raises(StoreMismatchError):
        train(stores, tmp_path / "a", calibration=tmp_path / "x")


def test_split_of_all_tiles():
    found = split_all_to_fit([("b", 2), ("a", 3), ("none", 0)], [("c", 1)])
    assert [item.slide for item in found.fit] == ["a", "b"]
    np.testing.assert_array_equal(found.fit[0].indices, [0, 1, 2])
    assert found.stop == found.calibration
    assert found.by_slide
    with pytest.raises(InputError, match="the slide a is both"):
        split_all_to_fit([("a", 1)], [("a", 1)])
    with pytest.raises(InputError, match="none to calibrate"):
        split_all_to_fit([("a", 1)], [("b", 0)])
