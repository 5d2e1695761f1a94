import hashlib
import json
import pickle
import struct
import urllib.error
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsiad.core.errors import WeightsError
from wsiad.networks import vgg, weights


def resolve(given, model="vgg19"):
    return weights.resolve(given, model=model, random_tensors=lambda: vgg.random_tensors(0))


@pytest.fixture
def tensors():
    return {"features.0.weight": torch.randn(4, 3, 3, 3), "features.0.bias": torch.zeros(4)}


def test_safetensors(tmp_path, tensors):
    path = tmp_path / "w.safetensors"
    save_file(tensors, path, metadata={"padding": "reflect"})
    found = resolve(str(path))
    assert torch.equal(found.tensors["features.0.weight"], tensors["features.0.weight"])
    assert found.metadata["padding"] == "reflect"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.note() == {"source": str(path), "sha256": found.sha256}
    assert not found.random


@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dict(tmp_path, tensors, wrapped):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": tensors, "epoch": 3} if wrapped else tensors, path)
    assert torch.equal(resolve(str(path)).tensors["features.0.bias"], tensors["features.0.bias"])


def test_half_precision_becomes_float32(tmp_path, tensors):
    path = tmp_path / "w.safetensors"
    save_file({k: t.half() for k, t in tensors.items()}, path)
    assert resolve(str(path)).tensors["features.0.weight"].dtype == torch.float32


class Harm:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickled_object_is_refused_and_does_not_run(tmp_path, capsys):
    torch_file, plain = tmp_path / "a.pth", tmp_path / "b.pkl"
    torch.save({"x": Harm()}, torch_file)
    plain.write_bytes(pickle.dumps(Harm(), protocol=2))
    for path in (torch_file, plain):
        with pytest.raises(WeightsError, match="more than plain tensors"):
            resolve(str(path))
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_damaged_file(tmp_path, tensors, name, content):
    path = tmp_path / name
    if content is None:  # cut short
        if name.endswith("safetensors"):
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        content = path.read_bytes()[:-100]
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        resolve(str(path))


@pytest.mark.parametrize("values", [[torch.zeros(1)], {"a": 1}, torch.zeros(2)])
def test_file_that_is_no_state_dict(tmp_path, values):
    path = tmp_path / "w.pth"
    torch.save(values, path)
    with pytest.raises(WeightsError, match="not a state dict"):
        resolve(str(path))


def test_whatever_a_damaged_file_makes_torch_raise_is_one_line(tmp_path, tensors):
    """AssertionError, IndexError, TypeError and AttributeError were among it."""
    rng = np.random.default_rng(1)
    for name, legacy in (("old.pth", True), ("new.pth", False), ("w.safetensors", None)):
        path = tmp_path / name
        if legacy is None:
            save_file(tensors, path)
        else:
            torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        refused = []
        for _ in range(150):
            damaged = bytearray(whole)
            for at in rng.integers(0, len(whole), 3):
                damaged[at] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                weights.read_file(path)
            except WeightsError as error:
                refused.append(str(error))
        assert len(refused) > 20
        assert all(name in text and "\n" not in text for text in refused)


def header(path, about, data=b"", length=None):
    text = json.dumps(about).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_files_that_claim_more_than_they_hold(tmp_path, tensors):
    path = tmp_path / "w.safetensors"
    header(path, {}, length=1 << 60)
    with pytest.raises(WeightsError, match="header too large"):
        weights.read_file(path)
    header(path, {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.read_file(path)
    claim, bomb = tmp_path / "claim.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, claim)
    with pytest.raises(WeightsError, match=r"claim 4398046511104 bytes, which a file of \d+ does"):
        weights.read_file(claim)
    torch.save(tensors, path)
    with (
        zipfile.ZipFile(path) as given,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in given.namelist():
            packed.writestr(name, given.read(name))
        packed.writestr("w/data/9", bytes(1 << 24))
    with pytest.raises(WeightsError, match="would unpack to 1677"):
        weights.read_file(bomb)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
    ],
)
def test_tensors_that_are_no_plain_numbers(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="a is not a plain array of numbers"):
        weights.read_file(tmp_path / "w.pth")


def test_a_folder_is_said_to_be_one(tmp_path):
    with pytest.raises(WeightsError, match="is a folder"):
        weights.read_file(tmp_path)


def test_values_that_are_not_finite(tmp_path, tensors):
    tensors["features.0.bias"][1] = float("nan")
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"features\.0\.bias .*not finite"):
        resolve(str(tmp_path / "w.safetensors"))


def test_no_such_file(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        resolve(str(tmp_path / "absent.safetensors"))


def test_random_only_by_name_and_said_so():
    first, second = resolve("random"), resolve("random")
    assert first.random
    assert "mean nothing" in first.note()["warning"]
    assert first.sha256 == second.sha256
    other = weights.tensors_sha256(vgg.random_tensors(1))
    assert other != first.sha256


def test_no_internet_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(url, *_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(WeightsError) as error:
        resolve("imagenet")
    text = str(error.value)
    assert "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth" in text
    assert str(tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth") in text
    assert "--weights FILE" in text


def test_official_weights_come_from_the_cache(tmp_path, monkeypatch, tensors):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir()
    torch.save(tensors, path)
    found = resolve(None)
    assert found.source == "torchvision vgg19 IMAGENET1K_V1 (vgg19-dcbb9e9d.pth)"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_official_weights_are_downloaded_and_checked(tmp_path, monkeypatch, tensors):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = {}

    def download(url, destination, *, hash_prefix, progress):
        asked.update(url=url, hash_prefix=hash_prefix)
        torch.save(tensors, destination)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert set(resolve(None).tensors) == set(tensors)
    assert asked["hash_prefix"] == "dcbb9e9d"
