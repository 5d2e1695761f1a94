"""pipelines/few_anomalies.py: what a few anomalous tiles choose, from scores alone."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

PIPELINES = Path(__file__).parents[2] / "pipelines"
GROUPS = (("n", "normal", 60), ("a", "tumour", 20), ("b", "tumour", 20), ("c", "tumour", 5))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("few", PIPELINES / "few_anomalies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["few"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["few"]


def put(folder, groups=GROUPS, *, gain=0.0, seed=0):
    """Write scores as `wsiad score-tiles` does; tumour scores higher by `gain`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    found = {}
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "index", "tile", "score", "percentile"])
        for name, kind, count in groups:
            found[name] = np.round(rng.normal(gain * (kind == "tumour"), 1, count), 1)
            writer.writerows([name, i, "", s, ""] for i, s in enumerate(found[name]))
    facts = [{"group": name, "taken_as": kind} for name, kind, _ in groups]
    (folder / "evaluation.json").write_text(json.dumps({"groups": facts}))
    return found


@pytest.fixture
def scored(tmp_path):
    for seed, (name, gain) in enumerate((("bad", -1.0), ("good", 1.0), ("none", 0.0))):
        put(tmp_path / "s" / name / "validation", gain=gain, seed=seed)
        put(tmp_path / "s" / name / "test", gain=gain, seed=10 + seed)
    return tmp_path / "s"


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_area_of_a_sample_is_that_of_its_tiles(script, tmp_path):
    scores = put(tmp_path / "x/validation", gain=0.5)
    put(tmp_path / "x/test", gain=0.5, seed=1)
    shares = script.read_setting(tmp_path / "x").shares
    for drawn in ([0], [3, 4, 17], range(20)):
        sample = scores["b"][list(drawn)]
        truth = np.repeat([0, 1], [60, len(sample)])
        expected = roc_auc_score(truth, np.concatenate([scores["n"], sample]))
        assert shares["b"][list(drawn)].mean() == pytest.approx(expected)


def test_the_best_setting_is_picked_and_more_often_by_more(script, scored, tmp_path, capsys):
    command = [str(scored), "--out", str(tmp_path / "o"), "--types", "1", "2", "--tiles", "1", "20"]
    assert script.main(command) == 0
    assert "all anomalous tiles pick good" in capsys.readouterr().out
    rows = read(tmp_path / "o/few_anomalies.csv")
    assert [(row["types"], row["tiles_of_each"]) for row in rows] == [
        ("1", "1"), ("1", "20"), ("2", "1"), ("2", "20"),
    ]  # fmt: skip
    means = [float(row["relative_mean"]) for row in rows]
    assert means[0] < means[2] < 1
    assert means[1] == means[3] == 1
    samples = read(tmp_path / "o/samples.csv")
    assert len(samples) == 4 * 200
    by_name = {s.name: s.test_auroc for s in script.read_settings(scored)}
    for row in samples:
        relative = by_name[row["picked"]] / by_name["good"]
        assert float(row["relative"]) == pytest.approx(relative, rel=1e-5)
    assert (tmp_path / "o/few_anomalies.png").stat().st_size > 0
    first = (tmp_path / "o/samples.csv").read_bytes()
    assert script.main(command) == 0
    assert (tmp_path / "o/samples.csv").read_bytes() == first


def test_numbers_that_are_not_there_are_left_out_and_said(script, scored, tmp_path, capsys):
    command = [str(scored), "--out", str(tmp_path / "o"), "--types", "2", "3", "--tiles", "10"]
    assert script.main(command) == 0
    assert "left out: 3 types of 10 tiles" in capsys.readouterr().err
    assert {row["types"] for row in read(tmp_path / "o/few_anomalies.csv")} == {"2"}
    assert script.main([*command[:4], "3", "--tiles", "10"]) == 1


def test_scores_that_do_not_fit_are_refused(script, scored, tmp_path, capsys):
    def refused(folder=scored):
        assert script.main([str(folder), "--out", str(tmp_path / "o")]) == 1
        return capsys.readouterr().err

    assert "two or more settings" in refused(tmp_path / "absent")
    put(scored / "other/validation", (("n", "normal", 60), ("a", "tumour", 9)))
    put(scored / "other/test")
    assert "other: was scored on other tiles than bad" in refused()
    (scored / "other/validation/scores.csv").write_text("group,score\nn,x\n")
    assert "does not hold scores of tiles" in refused()
    put(scored / "another/validation", (("n", "normal", 60),))
    assert "another" in refused()


def test_the_driver_makes_each_score_once(tmp_path):
    """With a `wsiad` that notes what it is given and makes what is looked for."""
    stub = tmp_path / "bin/wsiad"
    stub.parent.mkdir()
    stub.write_text(
        '#!/bin/bash\necho "$@" >> calls\nwhile [ "$1" != --out ]; do shift; done\n'
        'mkdir -p "$2"; touch "$2/run.json" "$2/evaluation.json"\n'
    )
    stub.chmod(0o755)
    (tmp_path / "bin/none").write_text('#!/bin/bash\necho "$@" > study\n')
    (tmp_path / "bin/none").chmod(0o755)
    for name in ("0001", "0002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.yaml").touch()
    environment = os.environ | {
        "PATH": f"{stub.parent}:{os.environ['PATH']}", "PYTHON": "none", "SAMPLES": "--types 1 2",
        "TRAIN": "--weights w",
    }  # fmt: skip
    command = ["bash", str(PIPELINES / "few_anomalies.sh"), "fit", "val", "tst", "out"]
    command += ["0001/train.yaml", "0002/train.yaml"]
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 6
    assert calls[3] == ("train fit --config 0002/train.yaml --out out/0002-train/run --weights w")
    assert calls[5] == "score-tiles out/0002-train/run tst --out out/0002-train/test"
    assert (tmp_path / "study").read_text().endswith("few_anomalies.py out --out out --types 1 2\n")
