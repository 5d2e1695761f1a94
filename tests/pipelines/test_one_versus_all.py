"""One class against all others, on scikit-learn's digits."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

SPEC = importlib.util.spec_from_file_location(
    "one_versus_all", Path(__file__).parents[2] / "pipelines" / "one_versus_all.py"
)
one_versus_all = importlib.util.module_from_spec(SPEC)
sys.modules["one_versus_all"] = one_versus_all
SPEC.loader.exec_module(one_versus_all)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """0, 1 and 4: 60 pictures of each to fit on, 20 to test; values from 0 to 16."""
    folder, found = tmp_path_factory.mktemp("digits"), load_digits()
    for digit in (0, 1, 4):
        pictures = found.images[found.target == digit].astype(np.uint8)
        for part, some in (("train", pictures[:60]), ("test", pictures[60:80])):
            (folder / part / f"digit {digit}").mkdir(parents=True)
            for number, picture in enumerate(some):
                Image.fromarray(picture).save(folder / part / f"digit {digit}" / f"{number:02}.png")
    return folder


def command(digits, out, *more, method=("--detector", "knn")):
    return [str(digits / "train"), str(digits / "test"), "--out", str(out), *method,
            "--weights", "wsiad", "--grey-values", "0", "16", "--resize", "32",
            "--option", "places=4", *more]  # fmt: skip


def drawn(folder, count, *, seed, defect=False):
    """Pictures in colour of a texture, with a dark square in each if they have a defect."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        picture = rng.integers(150, 200, (48, 48, 3), dtype=np.uint8)
        if defect:
            top, left = rng.integers(4, 24, 2)
            picture[top : top + 18, left : left + 18] //= 4
        Image.fromarray(picture).save(folder / f"{number:03}.png")


def test_digits_are_told_apart(digits, tmp_path, capsys):
    assert one_versus_all.main(command(digits, tmp_path)) == 0
    path = tmp_path / "one_versus_all.csv"
    lines = one_versus_all.LINES.read(path)
    assert [line.normal for line in lines] == ["digit 0", "digit 1", "digit 4"]
    counts = {(one.fit, one.normal_tested, one.others_tested) for one in lines}
    assert counts == {(60, 20, 40)}
    assert lines[0].auroc > 0.9
    table = (tmp_path / "one_versus_all.md").read_text()
    average = np.mean([line.auroc for line in lines])
    assert f"| mean of 3 | {average:.3f} |" in table
    before = path.read_bytes()
    capsys.readouterr()
    more = ["--seeds", "0", "1", "--classes", "digit 0"]
    assert one_versus_all.main(command(digits, tmp_path, *more)) == 0
    said = capsys.readouterr().out
    assert "seed 1" in said
    assert "seed 0" not in said
    assert path.read_bytes().startswith(before)
    assert "±" in (tmp_path / "one_versus_all.md").read_text()


def test_a_preset_sets_method_and_options(digits, tmp_path):
    more = ["--classes", "digit 0", "--option", "nu=0.2"]
    one_versus_all.main(command(digits, tmp_path, *more, method=("--preset", "svdd")))
    more += ["--option", "centre=ball"]
    one_versus_all.main(command(digits, tmp_path, *more, method=("--detector", "svdd")))
    preset, plain = one_versus_all.LINES.read(tmp_path / "one_versus_all.csv")
    assert (preset.detector, preset.auroc) == ("svdd", plain.auroc)
    said = json.loads(preset.setting)
    assert said.pop("preset") == "svdd"
    assert said == json.loads(plain.setting)
    assert (said["nu"], said["centre"], said["weights"]) == (0.2, "ball", "wsiad")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (("--preset", "svdd", "--detector", "knn"), "the preset svdd is a setting of svdd"),
        (("--preset", "itsr"), "leaves out tiles of the fit"),
        (("--preset", "svd"), "did you mean 'svdd'"),
    ],
)
def test_a_preset_that_cannot_be_set_is_refused(digits, tmp_path, capsys, method, words):
    assert one_versus_all.main(command(digits, tmp_path, method=method)) == 2
    assert words in capsys.readouterr().err


def test_a_single_class_is_tested_against_defects_that_have_no_training_pictures(tmp_path, capsys):
    for name, count, seed in (("train/good", 20, 0), ("test/good", 8, 1)):
        drawn(tmp_path / name, count, seed=seed)
    for name, count, seed in (("hole", 5, 2), ("stain", 4, 3)):
        drawn(tmp_path / "test" / name, count, seed=seed, defect=True)
    arguments = [str(tmp_path / "train"), str(tmp_path / "test"), "--out", str(tmp_path),
                 "--weights", "wsiad", "--option", "pooling=max"]  # fmt: skip
    assert one_versus_all.main(arguments) == 0
    (line,) = one_versus_all.LINES.read(tmp_path / "one_versus_all.csv")
    assert (line.detector, line.normal, line.seed) == ("knn", "good", 0)
    assert (line.fit, line.normal_tested, line.others_tested) == (20, 8, 9)
    assert line.auroc == 1
    assert "mean of" not in (tmp_path / "one_versus_all.md").read_text()
    (tmp_path / "test" / "good").rename(tmp_path / "test" / "god")
    assert one_versus_all.main(arguments) == 2
    assert f"has other classes than {tmp_path / 'train'}: good, " in capsys.readouterr().err
    for name in ("god", "hole"):
        (tmp_path / "test" / name).rename(tmp_path / name)
    (tmp_path / "test" / "stain").rename(tmp_path / "test" / "good")
    assert one_versus_all.main(arguments) == 2
    assert "has 1 folder of pictures" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(digits, tmp_path, capsys):
    other = tmp_path / "test"
    (other / "digit 0").mkdir(parents=True)
    assert one_versus_all.main([*command(digits, tmp_path)[:1], str(other), "--out", "x"]) == 2
    assert "--grey-values" in capsys.readouterr().err
    arguments = command(digits, tmp_path, "--classes", "digit 7")
    assert one_versus_all.main(arguments) == 2
    assert "there is no class digit 7" in capsys.readouterr().err
    arguments = command(digits, tmp_path, "--detector", "linear-probe")
    assert one_versus_all.main(arguments) == 2
    assert "labelled anomalies" in capsys.readouterr().err
    arguments = command(digits, tmp_path, "--option", "input_px=64")
    assert one_versus_all.main(arguments) == 2
    assert "the pictures have 32 px" in capsys.readouterr().err
