"""Contaminated training: what is mixed, what is written, and that nothing is run twice."""

import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsiad.core.errors import InputError

SPEC = importlib.util.spec_from_file_location(
    "contamination", Path(__file__).parents[2] / "pipelines" / "contamination.py"
)
contamination = importlib.util.module_from_spec(SPEC)
sys.modules["contamination"] = contamination
SPEC.loader.exec_module(contamination)


def test_a_share_of_the_tiles_is_tumour():
    healthy = np.zeros((40, 8, 8, 3), np.uint8)
    tumour = np.arange(1, 9, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    mixed = contamination.contaminated(healthy, tumour, 0.1, seed=1)
    values = mixed[:, 0, 0, 0]
    assert sorted(values[values > 0]) == [1, 2, 3, 4]
    assert not healthy.any()
    again = contamination.contaminated(healthy, tumour, 0.1, seed=1)
    other = contamination.contaminated(healthy, tumour, 0.1, seed=2)
    assert (again == mixed).all()
    assert (other != mixed).any()
    assert (contamination.contaminated(healthy, tumour, 0, seed=1) == healthy).all()
    with pytest.raises(InputError, match="too few"):
        contamination.contaminated(healthy, tumour, 0.5, seed=1)


def test_from_tiles_to_the_table(tmp_path, capsys):
    """Healthy tiles are dark, tumour tiles light: those hidden in the training are found."""
    rng = np.random.default_rng(0)
    counts = {"train_normal": 40, "train_tumour": 12, "valid_normal": 8, "valid_tumour": 8}
    for name, count in counts.items():
        base = 190 if "tumour" in name else 90
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number in range(count):
                tile = np.clip(rng.normal(base, 25, (96, 96, 3)), 0, 255).astype(np.uint8)
                data = io.BytesIO()
                Image.fromarray(tile).save(data, "JPEG")
                info = tarfile.TarInfo(f"{number:03}.jpg")
                info.size = data.tell()
                tar.addfile(info, io.BytesIO(data.getvalue()))
    command = ["--pcam", str(tmp_path), "--out", str(tmp_path / "out"), "--weights", "wsiad",
               "--detectors", "gaussian", "--shares", "0", "0.2", "--fit-tiles", "24",
               "--stop-tiles", "8", "--seeds", "0"]  # fmt: skip
    assert contamination.main(command) == 0
    out = tmp_path / "out"
    first = (out / "contamination.csv").read_bytes()
    (clean, mixed) = contamination.LINES.read(out / "contamination.csv")
    assert (clean.share, mixed.share) == (0, 0.2)
    assert clean.auroc == 1.0
    assert mixed.auroc <= clean.auroc
    assert "| gaussian | 1.000 |" in (out / "contamination.md").read_text()
    assert Image.open(out / "contamination.png").width > 400
    capsys.readouterr()
    assert contamination.main([*command, "--seeds", "0", "1"]) == 0
    said = capsys.readouterr().out
    assert "seed 1" in said
    assert "seed 0" not in said
    assert (out / "contamination.csv").read_bytes().startswith(first)
    assert "±" in (out / "contamination.md").read_text()
    assert contamination.main([*command, "--trim", "0.25"]) == 0
    lines = contamination.LINES.read(out / "contamination.csv")
    rows = {(row.detector, row.share): row.auroc for row in lines if row.seed == 0}
    assert rows["gaussian trimmed 0.25", 0.2] >= rows["gaussian", 0.2]
    assert "| gaussian trimmed 0.25 | 1.000 |" in (out / "contamination.md").read_text()
    assert contamination.main([*command, "--trim", "0.25", "--rounds", "1"]) == 0  # not the same
    assert "| gaussian trimmed 0.25, rounds 1 |" in (out / "contamination.md").read_text()
    assert contamination.main([*command, "--trim", "0.5"]) == 2
    assert "--trim" in capsys.readouterr().err
    assert contamination.main([*command, "--fit-tiles", "20"]) == 2
    assert "other numbers of tiles" in capsys.readouterr().err
