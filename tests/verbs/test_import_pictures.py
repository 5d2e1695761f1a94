"""`wsiad import-tiles` of pictures: what is stored, recorded, resumed and compared."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

import wsiad
from wsiad.core.errors import ConfigError, InputError, StoreMismatchError
from wsiad.store.tile_source import StoreTiles
from wsiad.store.tile_store import TileStore

GREY = {"grey_values": [0, 255], "resize": 64, "crop": 64, "clahe": 2.0}


def folder(path, pictures):
    path.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """Four parts of a grey picture, not square."""
    moon = data.moon()
    parts = [moon[y : y + 140, x : x + 180] for y in (0, 300) for x in (0, 300)]
    return folder(tmp_path_factory.mktemp("moons") / "moon", parts)


def load(source, out, **options):
    return wsiad.import_tiles(sources=[source], out=out, mpp=1, quiet=True, **options)


def test_the_store_holds_the_prepared_pictures_and_says_how(moons, tmp_path):
    result = load(moons, tmp_path / "store", **GREY)
    store = TileStore(tmp_path / "store")
    assert [row.status for row in result.rows] == ["ok"]
    assert store.preparation.tile == 64
    assert store.preparation.pictures.model_dump() == {**GREY, "grey_values": (0, 255)}
    tiles = next(StoreTiles([(next(iter(store)), np.arange(4))]).ordered(4))
    assert tiles.shape == (4, 64, 64, 3)
    assert np.array_equal(tiles[..., 0], tiles[..., 2])
    assert 10 < tiles.std() < 100
    before = (tmp_path / "store" / "slides.csv").read_bytes()
    assert load(moons, tmp_path / "store", **GREY).rows[0].tiles == 4
    assert (tmp_path / "store" / "slides.csv").read_bytes() == before
    with pytest.raises(StoreMismatchError, match="clahe"):
        load(moons, tmp_path / "store", **{**GREY, "clahe": 3.0})


def test_stores_without_pictures_are_as_ever(tmp_path):
    plain = folder(tmp_path / "plain", [np.full((32, 32, 3), 9, np.uint8)])
    load(plain, tmp_path / "store")
    assert TileStore(tmp_path / "store").preparation.pictures is None
    facts = [path.read_text() for path in (tmp_path / "store").rglob("zarr.json")]
    assert facts
    assert not any('"pictures"' in text for text in facts)


def test_grey_pictures_need_their_values(moons, tmp_path):
    with pytest.raises(InputError, match="--grey-values"):
        load(moons, tmp_path / "store", resize=64, crop=64)
    with pytest.raises(ConfigError, match="the same"):
        load(moons, tmp_path / "store", grey_values=[3, 3])
    with pytest.raises(ConfigError, match="are ready"):
        load(moons, tmp_path / "store", prepared_like=tmp_path, resize=64)


def test_runs_and_stores_of_other_pictures_are_refused(moons, tmp_path):
    load(moons, tmp_path / "fit", label="normal", **GREY)
    load(moons, tmp_path / "other", **{**GREY, "clahe": 4.0})
    load(moons, tmp_path / "alike", **{**GREY, "crop": 48})
    options = {"places": 2, "input_px": 48}
    wsiad.train(store=tmp_path / "fit", out=tmp_path / "run", detector="gaussian",
                options=options, weights="random", quiet=True)  # fmt: skip
    scored = wsiad.score_tiles(run=tmp_path / "run", store=tmp_path / "alike",
                               out=tmp_path / "scores", quiet=True)  # fmt: skip
    assert len(scored.groups) == 1
    with pytest.raises(StoreMismatchError, match="another --clahe than the run's"):
        wsiad.score_tiles(run=tmp_path / "run", store=tmp_path / "other",
                          out=tmp_path / "none", quiet=True)  # fmt: skip
    with pytest.raises(StoreMismatchError, match="grey or equalised, which slides are not"):
        wsiad.heatmap(slides=moons / "0.png", run=tmp_path / "run", out=tmp_path / "h", quiet=True)
