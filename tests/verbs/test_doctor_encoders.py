"""``wsiad doctor`` tells which encoders are at hand, and what is wrong with the others."""

import hashlib
import json

import pytest

from support.tiny_encoders import TINY, team
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.verbs.doctor import DoctorConfig, doctor


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torchvision_models()
    pytest.importorskip("timm", reason="the optional dependency timm is not installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("WSIAD_ENCODERS", raising=False)
    return tmp_path / "encoders"


def checks(**config):
    found = json.loads(doctor(DoctorConfig(as_json=True, **config)).summary)
    return {check["name"]: check for check in found}


def test_none_at_hand_is_a_note(folder, tmp_path):
    found = checks()["encoders"]
    assert found["state"] == "note"
    assert found["finding"].startswith("0 of ")
    assert "$WSIAD_ENCODERS is not set" in found["finding"]
    assert f"HF_HUB_CACHE={tmp_path / 'hub'}" in found["finding"]
    assert "docs/encoders.md" in found["remedy"]


def test_every_encoder_is_told_with_its_file_and_its_terms(folder, monkeypatch):
    team(folder, one=TINY, two=TINY)
    sha = hashlib.sha256((folder / "one.bin").read_bytes()).hexdigest()
    team(folder, one={**TINY, "sha256": [sha], "gated": True}, two=TINY)
    monkeypatch.setenv("WSIAD_ENCODERS", str(folder))
    found = checks()
    assert found["encoders"]["finding"].startswith("2 of ")
    one = found["one"]
    assert one["state"] == "ok"
    for part in (str(folder / "one.bin"), "0 MiB, verified;", "24 features by cls",
                 "32 px at 0.5 µm/px", "for tests only, gated"):  # fmt: skip
        assert part in one["finding"]
    assert "no SHA-256 is known" in found["two"]["finding"]


def test_what_is_wrong_is_told(folder, tmp_path, monkeypatch):
    team(folder, one={**TINY, "sha256": ["0" * 64]}, two=TINY, three=TINY, other=TINY)
    sha = hashlib.sha256((folder / "three.bin").read_bytes()).hexdigest()
    of = {"one": "0" * 64, "three": "1" * 64, "other": sha}
    table = {"two": TINY} | {name: {**TINY, "sha256": [known]} for name, known in of.items()}
    (folder / "encoders.yaml").write_text(json.dumps(table))
    (folder / "two.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "one.bin").write_bytes(b"changed")
    snapshot = tmp_path / "hub" / "models--MahmoodLab--UNI" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/purged")
    monkeypatch.setenv("WSIAD_ENCODERS", str(folder))
    found = checks()
    assert "not verified: not a file whose SHA-256 is known" in found["one"]["finding"]
    assert "pointer of Git LFS" in found["two"]["finding"]
    assert "git lfs pull" in found["two"]["remedy"]
    assert "is the file of other, not of three" in found["three"]["finding"]
    assert found["three"]["state"] == "problem"
    assert found["uni"]["state"] == "note"
    assert "links to ../../blobs/purged, which is not there" in found["uni"]["finding"]
    assert "hf download MahmoodLab/UNI" in found["uni"]["remedy"]


def test_a_wrong_table_or_folder_is_a_problem(folder, monkeypatch):
    monkeypatch.setenv("WSIAD_ENCODERS", str(folder))
    assert checks()["encoders' folder"]["state"] == "problem"
    folder.mkdir()
    (folder / "encoders.yaml").write_text("a: {network: x}")
    found = checks()["encoders"]
    assert found["state"] == "problem"
    assert "parameters" in found["finding"]
