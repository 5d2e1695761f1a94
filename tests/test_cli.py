"""The command line: help, exit codes, config files, and that it is quick."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.builders import import_images, stained, write_tiff
from wsiad.cli import VERBS, main
from wsiad.verbs.tile import TileConfig

ROOT = Path(__file__).parents[1]


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_every_option_and_an_example(verb, capsys):
    from wsiad.core.config import config_class

    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"wsiad {verb}" in text
    assert "examples:" in text
    name = verb.replace("-", "_")
    module = __import__(f"wsiad.verbs.{name}", fromlist=[name])
    cls = config_class(getattr(module, name))
    for field in cls.model_fields:
        if field not in ("tissue", "stain", *cls.unflagged):
            shown = (
                cls.flags.get(field, field)
                .replace("_", "-")
                .removesuffix("s" if field in ("options", "scales") else "")
            )
            assert shown in text.replace("_", "-").lower(), field


@pytest.mark.slow
def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys\n"
        "from wsiad.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'zarr', 'openslide', 'matplotlib', 'scipy', 'skimage', 'dask'}\n"
        "heavy |= {'tqdm', 'jinja2', 'numba', 'pandas'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    for arguments in (["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "HEAVY []" in done.stdout, arguments


def test_no_verb_and_unknown_verb(capsys):
    code, out, _ = run(capsys)
    assert code == 2
    assert "verbs:" in out
    with pytest.raises(SystemExit) as stop:
        main(["tyle"])
    assert stop.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_tile_by_flags_and_by_file(tmp_path, capsys):
    write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    flags = ["--mpp", "0.5", "--tile", "32", "--stain-method", "none", "--tissue-min-area-um2", "0"]
    code, _, _ = run(capsys, "tile", tmp_path / "s.tif", "--out", tmp_path / "a", *flags)
    assert code == 0
    config = {
        "mpp": 0.5, "tile": 64, "stain": {"method": "none"}, "tissue": {"min_area_um2": 0},
        "out": str(tmp_path / "b"), "slides": [str(tmp_path / "s.tif")],
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    code, _, _ = run(capsys, "tile", "--config", tmp_path / "c.yaml", "--tile", 32)
    assert code == 0
    resolved = [yaml.safe_load((tmp_path / n / "config.yaml").read_text()) for n in "ab"]
    for values in resolved:
        values.pop("out")
    assert resolved[0] == resolved[1]
    assert resolved[0]["tile"] == 32


def test_exit_codes(tmp_path, capsys):
    (tmp_path / "bad.svs").write_text("no slide")
    tile = ["tile", tmp_path / "bad.svs", "--out", tmp_path / "o", "--tile", 32]
    code, _, err = run(capsys, *tile, "--mpp", "0.5")
    assert code == 1
    assert re.search(r"1 failed:\n  bad: is not a slide", err)
    code, _, err = run(capsys, *tile)
    assert (code, "mpp: is required" in err) == (2, True)
    code, _, err = run(capsys, *tile, "--mpp", "wide")
    assert (code, "mpp: 'wide' is not allowed; it should be a valid number" in err) == (2, True)
    (tmp_path / "c.yaml").write_text("mpp: 0.5\ntyle: 3\n")
    code, _, err = run(capsys, *tile, "--config", tmp_path / "c.yaml")
    assert (code, "tyle: unknown key (did you mean 'tile'?)" in err) == (2, True)
    code, _, err = run(capsys, "tile", tmp_path / "gone", "--out", "o", "--mpp", 1, "--tile", 9)
    assert (code, "no such file or folder" in err) == (1, True)
    with pytest.raises(SystemExit) as stop:
        main(["tile", "--mqq", "1"])
    assert stop.value.code == 2


def test_unknown_detector_and_option(tmp_path, capsys):
    write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    run(capsys, "tile", tmp_path / "s.tif", "--out", tmp_path / "s", "--mpp", 0.5, "--tile", 48,
        "--tissue-min-area-um2", 0)  # fmt: skip
    train = ["train", tmp_path / "s", "--out", tmp_path / "r"]
    code, _, err = run(capsys, *train, "--detector", "gausian")
    assert (code, "did you mean 'gaussian'" in err) == (1, True)
    code, _, err = run(capsys, *train, "--detector", "gaussian", "--option", "plaeces=2")
    assert (code, "did you mean 'places'" in err) == (2, True)
    with pytest.raises(SystemExit):
        main(["train", "--option", "places"])
    assert "not KEY=VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--option", "places=[1"])
    assert "the value of places is not YAML" in capsys.readouterr().err
    code, _, err = run(capsys, *train, "--option", "places=9", "--option", "places=5")
    assert (code, "options: 'places' is set twice, to 9 and 5" in err) == (2, True)


def help_of(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_in_groups_with_every_default_and_no_file_that_is_not_there(verb, capsys):
    text = help_of(verb, capsys)
    groups = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert groups[-2:] == ["help, configuration and faults", "examples"]
    assert groups[int("positional arguments" in groups)] == "common options"
    options = re.split(r"\n  (?=-)", text[: text.index("\nexamples:")])[1:]
    for option in options:
        said = " ".join(option.split("\n\n")[0].split())
        assert re.search(r"default|\[required\]|-h, --help", said, re.IGNORECASE), said
    for name in re.findall(r"(?:configs|docs)/[\w./-]+\.(?:yaml|md)", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("verb", VERBS)
def test_titles_and_descriptions_fit_a_narrow_terminal(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(verb, capsys).partition("\nexamples:")[0]
    said = [line for line in text.splitlines() if not line.startswith("  ") or "OPTION" in line]
    assert [line for line in said if len(line) > 80] == []


UNITS = re.compile(
    r"µm|px|pixel|value|number|maximum|minimum|most|share|step|second|minute|quantile|level|quality|"
    r"seed|edge|port|rate|percent|radius|factor|bytes|GiB|width",
    re.IGNORECASE,
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_numbers_count(verb, capsys):
    text = help_of(verb, capsys)
    for option in re.split(r"\n  (?=-)", text[: text.index("\nexamples:")])[1:]:
        flag, _, said = option.partition(" ")
        if re.match(r"(INT|FLOAT)\b", said):
            assert UNITS.search(said), flag


def test_a_stride_that_leaves_gaps_between_tiles_is_refused_at_once(tmp_path, capsys):
    command = ["tile", tmp_path, "--out", tmp_path / "o", "--mpp", 0.5, "--tile", 96]
    code, _, text = run(capsys, *command, "--stride", 500)
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert text == (
        "wsiad tile: command line: a stride of 500 px leaves gaps between tiles of 96 px: set 96 "
        "or less\n"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_common_and_following_name_options_that_exist(verb):
    from wsiad.core.config import config_class
    from wsiad.verbs import function_of

    fields = config_class(function_of(verb)).model_fields
    assert set(VERBS[verb].common) <= set(fields)
    said = VERBS[verb].following.format_map(dict.fromkeys(fields, "X"))
    assert not said or said.split()[1] in VERBS
    if repeated := VERBS[verb].repeated:
        assert set(repeated) <= set(fields)
        assert set(repeated) <= set(config_class(function_of(said.split()[1])).model_fields)


def test_what_comes_after_embed_reads_the_features(tmp_path, capsys, monkeypatch):
    from wsiad.networks.features import BackboneFeatures

    for number in range(3):
        write_tiff(tmp_path / f"s{number}.tif", stained(120, 120), mpp=0.5, levels=1)
    store = tmp_path / "a store"
    tiling = ("--mpp", 0.5, "--tile", 48, "--tissue-min-area-um2", 0)
    assert run(capsys, "tile", tmp_path, "--out", store, *tiling)[0] == 0
    (tmp_path / "e.yaml").write_text(
        "detector: gaussian\noptions: {places: 2, fit_vectors: 9000}\n"
    )
    given = ["--option", "fit_vectors=5000", "--option", "layers=[features.3, features.6]"]
    given += ["--option", "backbone=squeezenet1_1", "--weights", "random", "--seed", "3"]
    code, said, _ = run(capsys, "embed", store, "--config", tmp_path / "e.yaml", *given)
    assert code == 0
    following = said.splitlines()[-1].removeprefix("next: ")
    assert following == (
        f"wsiad train '{store}' --out runs/gaussian --detector gaussian --option places=2 "
        "--option fit_vectors=5000 --option 'layers=[features.3, features.6]' "
        "--option backbone=squeezenet1_1 --weights random --seed 3"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BackboneFeatures, "forward", None)  # no network computes anything
    assert run(capsys, *shlex.split(following)[1:])[0] == 0
    monkeypatch.undo()
    given = ["--preset", "padim", "--weights", "random", "--option", "places=4"]
    code, said, _ = run(capsys, "embed", store, *given)
    assert code == 0
    assert said.splitlines()[-1] == (
        f"next: wsiad train '{store}' --out runs/padim --detector padim --preset padim "
        "--option places=4 --weights random"
    )
    code, said, _ = run(capsys, "embed", store, "--weights", "it's.pth")
    assert (code, said) == (1, "")


def test_a_verb_ends_with_what_was_made_and_what_comes_next(tmp_path, capsys):
    write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    out = tmp_path / "a store"
    command = ["tile", tmp_path / "s.tif", "--out", out, "--mpp", 0.5, "--tile", 48]
    command += ["--tissue-min-area-um2", 0]
    code, said, _ = run(capsys, *command)
    assert code == 0
    assert said.splitlines() == [
        f"{out}: 1 of 1 slide stored: 16 tiles; see {out / 'report.html'}",
        f"next: wsiad train '{out}' --out runs/knn --detector knn",
    ]
    code, quiet, _ = run(capsys, *command, "--quiet")  # only what was made
    assert (code, quiet) == (0, said.splitlines()[0] + "\n")
    for part in (["--only", "s"], ["--shard", "1/2"]):  # other calls do the rest
        code, said, _ = run(capsys, *command, *part)
        assert (code, len(said.splitlines())) == (0, 1)
    code, said, _ = run(capsys, "embed", out, "--weights", "random", "--shard", "1/1")
    assert code == 0
    assert "next: " not in said
    (tmp_path / "broken.svs").write_text("no slide")
    code, said, _ = run(capsys, "tile", tmp_path / "broken.svs", "--out", tmp_path / "other",
                        "--mpp", 0.5, "--tile", 48)  # fmt: skip
    assert code == 1
    assert "0 of 1 slide stored; 1 failed" in said
    assert "next: " not in said  # what failed comes first
    write_tiff(tmp_path / "glass.tif", np.full((200, 200, 3), 243, np.uint8), mpp=0.5, levels=1)
    code, said, _ = run(capsys, "tile", tmp_path / "glass.tif", "--out", tmp_path / "none",
                        "--mpp", 0.5, "--tile", 48)  # fmt: skip
    assert code == 0
    assert "1 without tissue: 0 tiles" in said
    assert "next: " not in said  # nothing is there to learn from
    code, said, _ = run(capsys, "embed", tmp_path / "none", "--weights", "random")
    assert code == 0
    assert "features of 0 tiles" in said
    assert "next: " not in said


@pytest.mark.parametrize(
    ("label", "following"),
    [
        ("Tumour", "STORE --out runs/probe --detector linear-probe --anomalies '{out}'"),
        ("macro", "STORE --out runs/probe --detector linear-probe --anomalies '{out}'"),
        ("Healthy", "'{out}' --out runs/knn --detector knn"),
        ("", "'{out}' --out runs/knn --detector knn"),
    ],
)
def test_tumour_is_not_what_a_detector_is_told_to_learn_from(tmp_path, capsys, label, following):
    out, sources = tmp_path / "a store", tmp_path / "tiles"
    import_images(sources, np.stack([stained(48, 48)]), out=tmp_path / "other")
    given = ["--label", label] if label else []
    code, said, _ = run(capsys, "import-tiles", sources, "--out", out, "--mpp", 0.5, *given)
    assert code == 0
    assert said.splitlines()[-1] == f"next: wsiad train {following.format(out=out)}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_stopped_says_what_is_true_of_it(verb, monkeypatch, capsys):
    def stopped(name, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("wsiad.cli._run", stopped)
    code, _, err = run(capsys, verb)
    assert code == 130
    # These go on in their folder; `refine` and `pretrain` add a note where there is nothing yet.
    resumes = {"tile", "embed", "train", "tune", "pretrain", "heatmap", "export", "refine"}
    resumes |= {"import-tiles", "import-features", "export-tiles"}
    assert ("finished work is kept" in err) is (verb in resumes)
    assert ("Delete that" in err) is (verb == "demo")


def test_a_configuration_of_another_verb_is_called_that(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    for text, verb, words in (
        ("store: s\nout: r\ndetector: knn\ntrimming: {share: 0.1}\n", "heatmap", "wsiad train."),
        ("mpp: 0.5\ntile: 64\nsplit_tiles: 9\n", "train", "wsiad tile."),
        ("store: s\nspace: {}\n", "train", "wsiad tune."),
    ):
        file.write_text(text)
        code, _, err = run(capsys, verb, "--config", file)
        assert code == 2
        assert (
            err
            == f"wsiad {verb}: {file}: is a configuration of {words} Pass one of wsiad {verb}.\n"
        )
    # What no verb knows, or what is wrong in a key of its own, is said as ever.
    for text, words in (("stroe: s\n", "stroe: unknown key"), ("seed: x\n", "seed: 'x'")):
        file.write_text(text)
        code, _, err = run(capsys, "train", "store", "--out", "r", "--config", file)
        assert code == 2
        assert words in err


def test_doctor(capsys, tmp_path):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for name in ("packages", "slides", "device", "torchvision", "weights"):
        assert re.search(rf"^(ok  |note)  {name} ", out, re.MULTILINE), name
    code, out, _ = run(capsys, "doctor", "--json")
    checks = json.loads(out)
    assert {"name", "state", "finding", "remedy"} == set(checks[0])
    (tmp_path / "w.safetensors").write_text("no")
    code, out, _ = run(capsys, "doctor", "--weights", tmp_path / "w.safetensors")
    assert code == 1
    assert "FAIL  w.safetensors" in out


CLUSTERS = ("slurm", "pbs", "lsf", "sge")  # see test_jobs.py
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.stem not in CLUSTERS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_valid(path):
    """Every file in configs/ is accepted by its verb, but for what only the user knows."""
    from wsiad.core.config import build, read_yaml

    values = read_yaml(path)
    verb = "train" if path.parent.name == "zoo" else path.stem.split("-")[0]
    module = __import__(f"wsiad.verbs.{verb}", fromlist=[verb])
    from wsiad.core.config import config_class

    cls = config_class(getattr(module, verb))
    missing = {name: "x" for name, f in cls.model_fields.items() if f.is_required()}
    if verb == "evaluate":
        missing["results"] = "x"
    build(cls, {**missing, **values}, source=str(path))


def test_config_fields_have_descriptions():
    from wsiad.core.config import option_texts

    for name, text in option_texts(TileConfig).items():
        assert text, name


def test_options_are_checked_without_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["heatmap", "run", "slides", "--out", "results", "--check-options"]
    assert main(words) == 0
    assert capsys.readouterr() == ("", "")
    (tmp_path / "c.yaml").write_text("strid: 16\n")
    for more, said in (
        (["--scales-umm", "100"], "unrecognized arguments: --scales-umm 100"),
        (["--stride", "-1"], "command line: stride"),
        (["--config", "c.yaml"], "c.yaml: strid: unknown key"),
    ):
        try:
            code = main([*words, *more])
        except SystemExit as end:
            code = end.code
        assert code == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
