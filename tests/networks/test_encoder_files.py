"""Where the weights of encoders are looked for, and which files are refused."""

import hashlib
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.tiny_encoders import TINY, team, tiny, weights
from wsiad.core.errors import WeightsError
from wsiad.networks import encoder_files
from wsiad.networks.encoder import table
from wsiad.networks.features import settle
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.networks.weights import Weights

torchvision_models()
pytest.importorskip("timm", reason="the optional dependency timm is not installed")

REPOSITORY = {**TINY, "repositories": ["Somebody/Tiny"], "files": ["model.safetensors"]}


@pytest.fixture(autouse=True)
def _nothing_at_hand(tmp_path, monkeypatch):
    """No encoder is at hand, and nothing may open a socket."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME",
                     "WSIAD_ENCODERS"):  # fmt: skip
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket, "socket", refuse)


def cached(cache: Path, repository: str, encoder, *, commit="a" * 40, main=True, seed="") -> Path:
    """Put the weights of an encoder into a cache as Hugging Face's library does."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    blob = folder / "blobs" / (commit[:8] + seed)
    blob.parent.mkdir(parents=True, exist_ok=True)
    tensors = weights(encoder)
    tensors["norm.bias"] = tensors["norm.bias"] + len(seed)
    save_file(tensors, blob)
    file = folder / "snapshots" / commit / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.symlink_to(os.path.relpath(blob, file.parent))
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return file


def test_the_cache_is_where_hugging_face_has_it(tmp_path, monkeypatch):
    find = encoder_files.hugging_face_cache
    assert find() == tmp_path / "home" / ".cache" / "huggingface" / "hub"
    for variable, value, expected in (
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "/h", "/h/hub"),
        ("HUGGINGFACE_HUB_CACHE", "/old", "/old"),
        ("HF_HUB_CACHE", "/new", "/new"),
    ):
        monkeypatch.setenv(variable, value)
        assert find() == Path(expected)


def test_the_snapshot_of_main_comes_first_whatever_the_case(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    encoder = tiny(base=REPOSITORY)
    older = cached(tmp_path / "hub", "somebody/TINY", encoder, commit="b" * 40)
    newer = cached(
        tmp_path / "hub", "somebody/TINY", encoder, commit="c" * 40, main=False, seed="x"
    )
    assert encoder_files.find(encoder) == older
    older.unlink()
    assert encoder_files.find(encoder) == newer
    found = encoder_files.read(encoder, None)
    assert found.sha256 == hashlib.sha256(newer.read_bytes()).hexdigest()
    assert found.encoder == "tiny"


def test_a_single_file_of_another_name_is_found_in_its_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    encoder = tiny(base=REPOSITORY)
    file = cached(tmp_path, "Somebody/Tiny", encoder)
    renamed = file.rename(file.with_name("other.safetensors"))
    assert encoder_files.find(encoder) == renamed


def test_the_teams_folder_comes_before_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    own = team(tmp_path / "own", tiny=REPOSITORY)
    encoder = tiny(base=REPOSITORY)
    there = cached(tmp_path / "hub", "Somebody/Tiny", encoder)
    assert encoder_files.find(encoder) == there
    monkeypatch.setenv("WSIAD_ENCODERS", str(own))
    assert encoder_files.find(table().get("tiny")) == own / "tiny.bin"
    (own / "tiny-2.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"2 files in .*tiny-2\.bin, tiny\.bin.*--weights FILE"):
        encoder_files.find(table().get("tiny"))
    (own / "tiny-2.bin").unlink()
    (own / "tiny.bin").rename(own / "tinyest.bin")
    assert encoder_files.find(table().get("tiny")) == there
    (own / "Tiny").mkdir()
    (own / "tinyest.bin").rename(own / "Tiny" / "any.pt")
    assert encoder_files.find(table().get("tiny")) == own / "Tiny" / "any.pt"


def test_torch_hub_comes_last(tmp_path):
    encoder = tiny(hub_files=["small.pth"])
    path = tmp_path / "torch" / "hub" / "checkpoints" / "small.pth"
    path.parent.mkdir(parents=True)
    torch.save(weights(encoder), path)
    assert settle("tiny", None, seed=0, encoder=encoder).weights.source == str(path)


def test_what_is_missing_is_told_with_where_it_was_looked_for_and_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(WeightsError) as caught:
        settle("uni", None, seed=0)
    text = str(caught.value)
    for part in ("uni: its weights are not on this machine", "$WSIAD_ENCODERS (not set)",
                 "models--MahmoodLab--UNI", "CC-BY-NC-ND 4.0", "access must be requested",
                 "hf download MahmoodLab/UNI pytorch_model.bin", "--weights FILE"):  # fmt: skip
        assert part in text
    assert "\n" not in text
    monkeypatch.setenv("WSIAD_ENCODERS", str(tmp_path))
    with pytest.raises(WeightsError, match=rf"looked in \$WSIAD_ENCODERS \({tmp_path}\)"):
        settle("kaiko-vits16", None, seed=0)


def test_a_purged_cache_is_not_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    encoder = tiny(base=REPOSITORY)
    file = cached(tmp_path, "Somebody/Tiny", encoder)
    for blob in (tmp_path / "models--Somebody--Tiny" / "blobs").iterdir():
        blob.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: links to .*blobs.*purged"):
        encoder_files.read(encoder, None)
    with pytest.raises(WeightsError, match="which is not there"):
        encoder_files.read(encoder, str(file))


def test_a_folder_is_asked_for_its_file(tmp_path):
    encoder = tiny(base=REPOSITORY)
    with pytest.raises(WeightsError, match=r"holds 0 files of weights.*model\.safetensors"):
        encoder_files.read(encoder, str(tmp_path))
    for name in ("a.bin", "b.bin"):
        torch.save(weights(encoder), tmp_path / name)
    with pytest.raises(WeightsError, match="holds 2 files of weights"):
        encoder_files.read(encoder, str(tmp_path))
    save_file(weights(encoder), tmp_path / "model.safetensors")
    assert encoder_files.read(encoder, str(tmp_path)).source.endswith("model.safetensors")


def test_a_sha256_verifies_or_refuses(tmp_path, monkeypatch, caplog):
    path = tmp_path / "one.bin"
    torch.save(weights(tiny()), path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    found = encoder_files.read(tiny(), str(path))
    assert not found.verified
    assert f"not verified: no SHA-256 of its weights is known here (this file has {sha})" in (
        caplog.text
    )
    caplog.clear()
    assert encoder_files.read(tiny(sha256=[sha]), str(path)).verified
    assert not caplog.records
    own = team(tmp_path / "own", mine=TINY, other={**TINY, "sha256": [sha]})
    monkeypatch.setenv("WSIAD_ENCODERS", str(own))
    with pytest.raises(WeightsError, match=r"the file of other, not of mine.*backbone=other"):
        settle("mine", str(path), seed=0)
    assert settle("other", str(path), seed=0).weights.verified


def test_a_file_in_the_repository_of_another_encoder_is_refused(tmp_path):
    encoder = tiny(base=REPOSITORY)
    file = cached(tmp_path, "MahmoodLab/uni", encoder)
    with pytest.raises(WeightsError, match="in the repository of uni, and not of tiny"):
        encoder_files.read(encoder, str(file))
    assert encoder_files.read(encoder, str(cached(tmp_path, "Some/Body", encoder)))


def half(tensors):
    return {name: one.half() if one.is_floating_point() else one for name, one in tensors.items()}


def test_a_file_in_half_precision_is_read(tmp_path):
    torch.save(half(weights(tiny())), tmp_path / "half.bin")
    found = encoder_files.read(tiny(), str(tmp_path / "half.bin"))
    assert found.tensors["norm.weight"].dtype == torch.float32


class Code:
    """An object whose pickle would run code."""

    def __reduce__(self):
        return os.system, ("true",)


def spoilt(kind: str, path: Path) -> None:
    tensors = weights(tiny())
    match kind:
        case "pointer":
            path.write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1213\n"
            )
        case "wrapped":
            torch.save({"model": tensors}, path)
        case "not finite":
            torch.save(tensors | {"norm.weight": torch.full((24,), torch.nan)}, path)
        case "code":
            path.write_bytes(pickle.dumps({"norm.weight": Code()}))
        case "truncated":
            torch.save(tensors, path)
            path.write_bytes(path.read_bytes()[:5000])
        case "missing":
            pass
        case "empty":
            path.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pointer", r"pointer of Git LFS \(\d+ bytes of text\).*git lfs pull"),
        ("wrapped", "holds its state dict under 'model', unlike the file of this encoder"),
        ("not finite", "norm.weight holds values that are not finite"),
        ("code", "not a PyTorch file, or holds more than plain tensors"),
        ("truncated", "cannot be read|not a PyTorch file"),
        ("missing", "there is no such file"),
        ("empty", "cannot be read|not a PyTorch file"),
    ],
)
def test_every_spoilt_file_has_a_message_of_its_own(tmp_path, kind, said):
    path = tmp_path / "weights.bin"
    spoilt(kind, path)
    with pytest.raises(WeightsError, match=said) as caught:
        encoder_files.read(tiny(), str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrapper_that_the_entry_states_is_taken_off(tmp_path):
    spoilt("wrapped", tmp_path / "weights.bin")
    assert encoder_files.read(tiny(unwrap=["model"]), str(tmp_path / "weights.bin")).tensors


def test_other_weights_are_refused_by_name():
    for asked in ("imagenet", "wsiad"):
        with pytest.raises(WeightsError, match=f"{asked} is not the name of weights of an encoder"):
            settle("uni", asked, seed=0)


def test_open_weights_are_recognised_by_what_is_known_of_them(monkeypatch):
    tensors = {"features.0.weight": torch.zeros(2), "classifier.weight": torch.zeros(3)}

    def of(source="/a/b.bin", sha256="0" * 64, metadata=None, **more):
        return Weights(tensors, source, sha256, metadata or {}, **more)

    assert encoder_files.is_open(of("random"))
    assert encoder_files.is_open(of("torchvision squeezenet1_1 IMAGENET1K_V1 (a.pth)"))
    assert encoder_files.is_open(of(metadata={"made_by": "wsiad pretrain 1.0"}))
    assert encoder_files.is_open(of(sha256="b8a52dc0" + "0" * 56))  # squeezenet1_1-b8a52dc0.pth
    assert not encoder_files.is_open(of())
    assert not encoder_files.is_open(of(sha256="b8a52dc0" + "0" * 56, encoder="uni"))
    trunk = {"features.0.weight": torch.zeros(2)}
    digest = encoder_files.tensors_sha256(trunk)
    monkeypatch.setattr(encoder_files, "_OPEN", {digest: "a network"})
    assert encoder_files.is_open(of())  # with its classifier
