"""Shards and codecs against zarr's own reading and writing; damage is found, not decoded."""

import json
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from support.builders import noise, stained
from wsiad.store.group import PixelError, TileArray
from wsiad.store.shards import ShardReader, array_codecs, decode, decoded, encode, shard_path
from wsiad.tiling.preparation import CompressionOptions

CODECS = [
    {"codec": "none"},
    {"level": -50},
    {},
    {"level": 3},
    {"codec": "jpeg", "quality": 90},
    {"codec": "jpeg-xl", "quality": 80},
]


@pytest.fixture(scope="module")
def tiles():
    image = np.concatenate([stained(320, 320, seed=s) for s in range(2)])
    cut = image.reshape(20, 32, 10, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    return np.concatenate([cut, noise(32, 32 * 7).reshape(32, 7, 32, 3).swapaxes(0, 1)])


@pytest.fixture
def written(tmp_path, tiles, monkeypatch):
    """Write tiles in chunks of 16 and shards of 256 chunks or fewer."""
    monkeypatch.setattr("wsiad.store.group._CHUNK_BYTES", 16 * 32 * 32 * 3)
    monkeypatch.setattr("wsiad.store.group._CHUNKS_PER_SHARD", 4)

    def write(values, tiles=tiles, parts=(1, 15, 40, 200)):
        group = zarr.create_group(tmp_path / "g", overwrite=True)
        array = TileArray(group, 32, CompressionOptions(**values))
        for part in np.split(tiles, [p for p in np.cumsum(parts) if p < len(tiles)]):
            array.append(part)
        array.finish()
        return tmp_path / "g" / "tiles", array

    return write


def read(folder, count):
    reader = ShardReader.of(folder)
    out = np.empty((-(-count // reader.shape[0]), *reader.shape), np.uint8)
    for number, chunk in enumerate(out):
        reader.read(number, chunk)
    return out.reshape(-1, *reader.shape[1:])[:count]


@pytest.mark.parametrize("values", CODECS, ids=str)
def test_zarr_reads_what_is_written_and_so_does_the_reader(written, tiles, values):
    folder, array = written(values)
    assert array.count == len(tiles) == 207
    by_zarr = zarr.open_group(folder.parent, mode="r")["tiles"]
    assert by_zarr.shape == (207, 32, 32, 3)
    assert by_zarr.chunks == (16, 32, 32, 3)
    assert by_zarr.shards == (64, 32, 32, 3)
    here = read(folder, 207)
    np.testing.assert_array_equal(here, by_zarr[:])
    np.testing.assert_array_equal(here[100:103], by_zarr[100:103])
    facts = array.facts()
    if "quality" in values:
        # Chunks of 16 tiles: the first eight, and the ninth as the next eighth one.
        error = np.abs(here.astype(int) - tiles)[: 9 * 16]
        assert facts["error"]["tiles"] == 9 * 16
        assert facts["error"]["max_abs"] == error.max() > 0
        assert facts["error"]["mean_abs"] == pytest.approx(error.mean(), abs=1e-4)
        psnr = 10 * np.log10(255**2 / np.mean(error.astype(float) ** 2))
        assert facts["error"]["psnr_db"] == pytest.approx(psnr, abs=0.01)
        assert facts["quality"] == values["quality"]
    else:
        np.testing.assert_array_equal(here, tiles)
        assert "error" not in facts


@pytest.mark.parametrize("values", CODECS[:4], ids=str)
def test_reader_reads_what_zarr_writes(tmp_path, tiles, values):
    array = zarr.create_group(tmp_path / "g").create_array(
        "tiles",
        shape=tiles.shape,
        chunks=(8, 32, 32, 3),
        shards=(32, 32, 32, 3),
        dtype="uint8",
        **array_codecs(CompressionOptions(**values)),
    )
    array[:] = tiles
    np.testing.assert_array_equal(read(tmp_path / "g" / "tiles", len(tiles)), tiles)


def test_lossless_shards_are_zarrs_own_bytes(written, tmp_path, tiles):
    folder, _ = written({})
    array = zarr.create_group(tmp_path / "z").create_array(
        "tiles",
        shape=tiles.shape,
        chunks=(16, 32, 32, 3),
        shards=(64, 32, 32, 3),
        dtype="uint8",
        dimension_names=("tile", "y", "x", "channel"),
        config={"write_empty_chunks": True},
        **array_codecs(CompressionOptions()),
    )
    array[:] = tiles
    for path in sorted((tmp_path / "z/tiles").rglob("*")):
        if path.is_file():
            assert (
                path.read_bytes() == (folder / path.relative_to(tmp_path / "z/tiles")).read_bytes()
            )


def test_default_needs_nothing_but_zarr(written, tiles):
    """Read by a process that knows zarr and not this package."""
    folder, _ = written({})
    script = (
        "import sys, zarr; a = zarr.open_group(sys.argv[1], mode='r')['tiles'][:]; "
        "assert not any(m.startswith('wsiad') for m in sys.modules); print(int(a.sum()))"
    )
    command = [sys.executable, "-P", "-c", script, str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == tiles.sum(dtype=np.int64)


def test_no_tiles(written, tiles):
    folder, _ = written({}, tiles=tiles[:0])
    assert zarr.open_group(folder.parent, mode="r")["tiles"].shape == (0, 32, 32, 3)
    assert [path.name for path in folder.iterdir()] == ["zarr.json"]


def test_layouts_of_others_are_left_to_zarr(tmp_path, tiles):
    group = zarr.create_group(tmp_path / "g")
    shape = {"shape": tiles.shape, "chunks": (16, 32, 32, 3), "dtype": "uint8"}
    shards = {**shape, "shards": (64, 32, 32, 3)}
    group.create_array("plain", **shape)
    group.create_array("blosc", **shards, compressors=BloscCodec())
    group.create_array("wide", **shards | {"chunks": (16, 16, 32, 3)})
    group.create_array("float", **shards | {"dtype": "float32"})
    group.create_array("known", **shards, compressors=ZstdCodec())
    readers = {name: ShardReader.of(tmp_path / "g" / name) for name in group.array_keys()}
    assert [name for name, reader in readers.items() if reader] == ["known"]


@pytest.mark.parametrize("values", CODECS, ids=str)
def test_truncated_and_missing_shards(written, values):
    folder, _ = written(values)
    reader, out = ShardReader.of(folder), np.empty((16, 32, 32, 3), np.uint8)
    path = shard_path(folder, 0, axes=4)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 3, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="index of a shard is damaged"):
            reader.read(0, out)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        reader.read(0, out)
    path.write_bytes(whole)
    reader.read(3, out)
    path.write_bytes(whole[: len(whole) // 4])  # the index is known now, and the chunk is gone
    with pytest.raises(ValueError, match="does not hold chunk 3"):
        reader.read(3, out)


@pytest.mark.parametrize("values", CODECS[1:], ids=str)
def test_any_flipped_bit_is_found(written, values):
    """Most of a noisy image is stored as it is: without a checksum, damage would be pixels."""
    folder, _ = written(values)
    path, out = shard_path(folder, 0, axes=4), np.empty((16, 32, 32, 3), np.uint8)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 60).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        failed = 0
        reader = ShardReader.of(folder)
        for number in range(4):
            try:
                reader.read(number, out)
            except ValueError:
                failed += 1
        assert failed >= 1, at


def test_index_that_points_outside(written):
    folder, _ = written({})
    path, out = shard_path(folder, 0, axes=4), np.empty((16, 32, 32, 3), np.uint8)
    whole = path.read_bytes()
    for entry in ((2**63, 10), (0, 2**63), (2**64 - 1, 2**64 - 1), (10, len(whole))):
        index = np.frombuffer(whole[-68:-4], "<u8").copy()
        index[:2] = np.array(entry, np.uint64)
        data = index.tobytes()
        path.write_bytes(whole[:-68] + data + google_crc32c.value(data).to_bytes(4, "little"))
        with pytest.raises(ValueError):
            ShardReader.of(folder).read(0, out)


def test_chunk_of_another_size():
    small = encode(np.zeros((2, 32, 32, 3), np.uint8), CompressionOptions())
    for shape in ((1, 32, 32, 3), (3, 32, 32, 3)):
        with pytest.raises(ValueError):
            decode(small, ("bytes", "zstd"), np.empty(shape, np.uint8))


def test_metadata_that_is_no_json(written):
    folder, _ = written({})
    (folder / "zarr.json").write_text("{")
    with pytest.raises(ValueError):
        ShardReader.of(folder)
    (folder / "zarr.json").write_text(json.dumps({"codecs": []}))
    assert ShardReader.of(folder) is None


def test_pixel_error():
    error = PixelError()
    assert error.values() == {"max_abs": None, "mean_abs": None, "psnr_db": None, "tiles": 0}
    same = np.zeros((1, 2, 2, 3), np.uint8)
    error.add(same, same)
    assert error.values() == {"max_abs": 0, "mean_abs": 0.0, "psnr_db": None, "tiles": 1}
    error.add(same, same + 255)
    assert error.values() == {"max_abs": 255, "mean_abs": 127.5, "psnr_db": 3.01, "tiles": 2}


def test_the_error_of_many_tiles_is_that_of_every_eighth_chunk(tmp_path, monkeypatch):
    coded = []

    def counted(data, tiles, compression):
        coded.append(len(tiles))
        return decoded(data, tiles, compression)

    monkeypatch.setattr("wsiad.store.group.chunk_tiles", lambda _tile: 2)
    monkeypatch.setattr("wsiad.store.group.decoded", counted)
    group = zarr.create_group(tmp_path / "s")
    array = TileArray(group, 16, CompressionOptions(codec="jpeg"))
    tiles = np.random.default_rng(0).integers(0, 256, (2 * 25 - 1, 16, 16, 3), np.uint8)
    array.append(tiles)
    array.finish()
    assert len(coded) == 8 + 3  # chunks 0 to 7, 8, 16 and 24, in which there is one tile
    assert array.facts()["error"]["tiles"] == 2 * 10 + 1
