"""The recipes of SLURM with commands that only note what they are given: each word, in order."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from wsiad.cli import _verb_parser
from wsiad.core.config import config_class, dump_yaml
from wsiad.verbs import VERBS, function_of
from wsiad.verbs.doctor import Check
from wsiad.verbs.tile import TileConfig

SLURM = Path(__file__).parents[2] / "pipelines" / "slurm"

FILLED = """
PARTITION=short GPU_PARTITION=gpu ACCOUNT=lab ENVIRONMENT=venv
VENV="{root}/an environment"
SCRATCH="{root}/fast disk" LOGS="logs of jobs"
RESERVE_MINUTES=30 SIGNAL_SECONDS=300 MOST_REQUEUES=2
TILE_JOBS=20 HEATMAP_JOBS=8
TILE=(--partition="$PARTITION" --cpus-per-task=4 --time=04:00:00)
HEATMAP=(--partition="$GPU_PARTITION" --gres=gpu:1 --time=04:00:00)
TRAIN=(--partition="$GPU_PARTITION" --gres=gpu:1 --time=12:00:00)
OTHER=(--partition="$PARTITION" --time=01:00:00)
CLUSTER=(--partition="$PARTITION" --cpus-per-task=1 --time=1-00:00:00)
"""

NOTING = """#!/bin/bash
printf '%s\\0' "$@" >> "{root}/{name}.words"
printf '\\n' >> "{root}/{name}.words"
{then}
"""


class Site:
    """A folder with filled-in settings, and commands that note their words."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = root / "my site.sh"
        self.settings.write_text(FILLED.format(root=root))
        (root / "bin").mkdir()
        (root / "an environment" / "bin").mkdir(parents=True)
        number = 'n=$(cat "{root}/{name}.words" | wc -l); echo "10$n;cluster"'
        self.command("sbatch", number.replace("{root}", str(root)).replace("{name}", "sbatch"))
        self.command("scontrol", "")
        self.command("squeue", "echo ${TIME_LIMIT:-12:00:00}")
        self.wsiad("")

    def command(self, name: str, then: str, folder: str = "bin") -> None:
        path = self.root / folder / name
        path.write_text(NOTING.format(root=self.root, name=name, then=then))
        path.chmod(0o755)

    def wsiad(self, then: str) -> None:
        self.command("wsiad", then, "an environment/bin")

    def change(self, old: str, new: str) -> None:
        text = self.settings.read_text()
        assert old in text
        self.settings.write_text(text.replace(old, new))

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "SITE": str(self.settings), "SLURM_JOB_ID": "77"} | more

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, words)), env=self.environment(**more), cwd=self.root,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(SLURM / "submit.sh", *words)

    def job(self, *words: str, shards=1, complete=(), **more) -> subprocess.CompletedProcess[str]:
        return self.run(*self.job_words(*words, shards=shards, complete=complete), **more)

    def job_words(self, *words: str, shards=1, complete=()) -> list[str]:
        before = [SLURM, self.settings, shards, len(complete), *complete]
        return list(map(str, [SLURM / "job.sbatch", *before, *words]))

    def noted(self, name: str) -> list[list[str]]:
        path = self.root / f"{name}.words"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        words = [line.split("\0")[:-1] for line in lines]
        return [each for each in words if each[-1:] != ["--check-options"]]  # nothing was done


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "a site"
    folder.mkdir()
    return Site(folder)


def parsed(words: list[str]) -> dict[str, object]:
    verb, *given = words
    return vars(_verb_parser(verb, config_class(function_of(verb))).parse_args(given))


def test_a_command_is_submitted_with_exactly_these_words(site):
    done = site.submit("tile", "my slides/", "--out", "a store", "--mpp", "0.5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tile: job 101\n", "")
    assert site.noted("sbatch") == [[
        "--parsable", "--job-name=wsiad-tile", "--requeue", "--open-mode=append",
        "--signal=B:USR1@300", "--account=lab", "--partition=short", "--cpus-per-task=4",
        "--time=04:00:00", "--array=1-20", "--output=logs of jobs/%x-%A-%a.log",
        str(SLURM / "job.sbatch"), str(SLURM), str(site.settings), "20", "0",
        "tile", "my slides/", "--out", "a store", "--mpp", "0.5",
    ]]  # fmt: skip
    assert (site.root / "logs of jobs").is_dir()


def test_a_chain_waits_for_what_it_needs(site):
    """A training must have gone well; of a heatmap a slide may have failed, but none be left."""
    heatmap = ["heatmap", "run", "test", "--out=the results"]
    evaluate = ["evaluate", "the results", "--reference", "r.csv"]
    tile, train = ["tile", "s", "--out", "store"], ["train", "store", "--out", "run"]
    done = site.submit(*tile, "then", *train, "then", *heatmap, "then", *evaluate)
    assert done.stdout.split("\n")[:-1] == [
        "tile: job 101", "train: job 102", "heatmap: job 103", "evaluate: job 104",
    ]  # fmt: skip
    jobs = site.noted("sbatch")
    needs = [[word for word in job if word.startswith("--dependency")] for job in jobs]
    assert needs == [
        [],
        ["--dependency=afterany:101"],
        ["--dependency=afterany:101,afterok:102"],
        ["--dependency=afterany:101,afterok:102,afterany:103"],
    ]
    assert all("--kill-on-invalid-dep=yes" in job for job in jobs[1:])
    after = [job[job.index(str(SLURM)) + 2 :] for job in jobs]
    assert after == [
        ["20", "0", *tile],
        ["1", "1", "store", *train],
        ["8", "1", "store", *heatmap],
        ["1", "2", "store", "the results", *evaluate],
    ]
    assert "--gres=gpu:1" in jobs[1]
    assert "--gres=gpu:1" in jobs[2]
    assert "--partition=short" in jobs[3]


def test_after_features_a_chain_goes_on_only_if_they_are_complete(site):
    site.submit("embed", "store", "then", "train", "store", "--out", "run")
    embed, train = site.noted("sbatch")
    assert "--partition=short" in embed
    assert "--dependency=afterok:101" in train
    assert train[train.index(str(SLURM)) + 2 :][:2] == ["1", "0"]


def test_what_the_site_leaves_empty_is_left_to_slurm(site):
    site.change("PARTITION=short", "PARTITION=")
    site.change("ACCOUNT=lab", "ACCOUNT=")
    site.submit("evaluate", "results", "--reference", "r.csv")
    (words,) = site.noted("sbatch")
    assert not [word for word in words if word.startswith(("--partition", "--account"))]


@pytest.mark.parametrize(
    "flag",
    [["--cluster", "slurm.yaml"], ["--cluster=slurm.yaml"], ["--scheduler", "tcp://10.0.0.1:8786"]],
)
def test_a_command_that_others_work_for_is_one_small_job(site, flag):
    site.submit("tile", "s", "--out", "store", *flag)
    (words,) = site.noted("sbatch")
    assert "--time=1-00:00:00" in words
    assert not [word for word in words if word.startswith("--array")]
    site.job("tile", "s", "--out", "store", *flag)
    assert site.noted("wsiad") == [["tile", "s", "--out", "store", *flag]]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("PARTITION", "Write the partition of jobs without a GPU"),
        ("GPU_PARTITION", "Write the partition of jobs with a GPU"),
        ("ACCOUNT", "Write the account"),
        ("ENVIRONMENT", "Write venv, conda, module or apptainer"),
        ("VENV", "Write the folder of the virtual environment"),
    ],
)
def test_a_placeholder_is_named_in_one_line(site, name, remedy):
    with site.settings.open("a") as file:
        file.write(f"{name}=CHANGE-ME\n")
    for done in (site.submit("tile", "s", "--out", "o"), site.job("tile", "s", "--out", "o")):
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(
            f"wsiad on SLURM: {site.settings}: {name} is not filled in. {remedy}"
        )
    assert site.noted("sbatch") == []


def test_the_settings_that_come_with_wsiad_are_not_filled_in(site):
    done = site.run(SLURM / "submit.sh", "tile", "s", "--out", "o", SITE="")
    assert done.returncode == 2
    assert "site.sh: PARTITION is not filled in. Write" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ENVIRONMENT=venv", "ENVIRONMENT=docker", "ENVIRONMENT is 'docker'. Write venv, conda"),
        ("TILE_JOBS=20", "TILE_JOBS=many", "TILE_JOBS is 'many'. Write a whole number"),
        ("RESERVE_MINUTES=30", "RESERVE_MINUTES=5", "RESERVE_MINUTES is 5, within SIGNAL_SECONDS"),
        ("--time=12:00:00", "--time=30", "the time limit of a training, 30, is not more than"),
        ("--time=12:00:00", "--time=soon", "the time limit 'soon' is not one of SLURM's"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_waits_in_a_queue(
    site, old, new, said
):
    site.change(old, new)
    done = site.submit("train", "store", "--out", "run")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert site.noted("sbatch") == []


TILE = ["tile", "s", "--out", "a/store"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tile", "s"], "tile: --out is missing"),
        (["tile", "s", "--out", "o", "then"], "a command is missing beside 'then'"),
        (["train", "s", "--out", "o", "then", "--quiet"], "'--quiet' stands where a verb is"),
        (
            ["tiel", "s", "--out", "o"],
            "'tiel' stands where a verb is expected. The verbs are tile,",
        ),
        (
            [*TILE, "--record=r.json"],
            "this command becomes 20. Leave it out, also of a --config, or set TILE_JOBS=1 in",
        ),
        ([*TILE, "--only", "a"], "tile: --only is for a single call"),
        (
            ["heatmap", "r", "s", "--out=o", "--shard", "1/2"],
            "becomes 8. Leave it out, also of a --config, or set HEAT",
        ),
        (
            [*TILE, "then", "tile", "more", "--out=./a//store/"],
            "a/store is that of a command before it. Pass the slides of both to one command.",
        ),
    ],
)
def test_a_chain_is_looked_at_before_its_first_job_is_submitted(site, words, said):
    done = site.submit(*words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert site.noted("sbatch") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("record: r.json\n", "tile: --record is for a single call"),
        ("mpp: 0.5\r\n'only' : [a]  # one\r\n", "tile: --only is for a single call"),
        ("only:\n# names\n- a\nmpp: 0.5\n", "tile: --only is for a single call"),
        ("only:\n  - a\n", "tile: --only is for a single call"),
        ('shard: "1/2"\n', "tile: --shard is for a single call"),
    ],
)
def test_what_a_config_sets_is_looked_at_too(site, text, said):
    (site.root / "a config.yaml").write_text(text, newline="")
    for flag in (["--config", "a config.yaml"], ["--config=a config.yaml"]):
        done = site.submit(*TILE, *flag)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr
    assert site.noted("sbatch") == []


def test_a_config_that_wsiad_wrote_is_no_single_call(site):
    config = TileConfig(slides=["s"], out="kept store", mpp=0.5, tile=64)
    (site.root / "c.yaml").write_text(dump_yaml(config))
    done = site.submit("tile", "--config", "c.yaml", "then", "train", "kept store", "--out", "r")
    assert (done.returncode, done.stderr) == (0, "")
    tiling, training = site.noted("sbatch")
    assert "--array=1-20" in tiling
    assert "kept store" in training  # whose slides are to be complete, from the config


def test_a_config_can_leave_the_work_to_a_cluster(site):
    (site.root / "c.yaml").write_text("cluster: slurm.yaml\n")
    assert site.submit(*TILE, "--config", "c.yaml").returncode == 0
    (job,) = site.noted("sbatch")
    assert not [word for word in job if word.startswith("--array")]
    assert site.job(*TILE, "--config", "c.yaml", SLURM_CPUS_PER_TASK="4").returncode == 0
    assert "--workers" not in site.noted("wsiad")[-1]


REAL = f'PYTHONPATH={Path(__file__).parents[2]} exec {sys.executable} -m wsiad "$@"'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--scales-umm", "100"],
            "unrecognized arguments: --scales-umm 100 (did you mean '--scales-um'?)",
        ),
        (["--scales-um", "-5"], "heatmap: command line: scales_um: the scales -5 µm are not"),
        (["--config", "c.yaml"], "c.yaml: strid: unknown key (did you mean 'stride'?)"),
    ],
)
def test_options_that_wsiad_refuses_are_not_queued(site, words, said):
    site.wsiad(REAL)
    (site.root / "c.yaml").write_text("strid: 16\n")
    training = ["train", "store", "--out", "run", "--detector", "knn"]
    done = site.submit(*training, "then", "heatmap", "run", "slides", "--out", "results", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert site.noted("sbatch") == []
    assert not (site.root / "run").exists()
    done = site.submit(*training, "then", "heatmap", "run", "slides", "--out", "results")
    assert (done.returncode, done.stderr, len(site.noted("sbatch"))) == (0, "", 2)


def test_where_wsiad_is_not_the_submission_says_that_options_are_not_checked(site):
    (site.root / "an environment" / "bin" / "wsiad").unlink()
    done = site.submit("heatmap", "run", "slides", "--out", "results", "--scales-umm", "100")
    assert (done.returncode, len(site.noted("sbatch"))) == (0, 1)
    assert len(done.stderr.splitlines()) == 1
    assert "misspelt options are not found before the jobs run" in done.stderr
    assert "bin/wsiad: not on node" in done.stderr


def test_help_needs_no_settings(site):
    site.settings.unlink()
    for word in ("-h", "--help"):
        done = site.submit(word)
        assert (done.returncode, done.stderr) == (0, "")
        assert "submit.sh tile slides/" in done.stdout


def test_one_call_can_have_its_record_and_share_a_folder(site):
    site.change("TILE_JOBS=20", "TILE_JOBS=1")
    words = [*TILE, "--record", "r.json", "then", "tile", "more", "--out", "a/store"]
    assert site.submit(*words).returncode == 0
    assert [job[-len(TILE) :] for job in site.noted("sbatch")][1] == ["tile", "more", *TILE[2:]]


def test_a_time_limit_is_looked_at_before_the_first_job_of_a_chain(site):
    site.change("--time=12:00:00", "--time=30")
    done = site.submit(*TILE, "then", "train", "a/store", "--out", "run")
    assert (done.returncode, site.noted("sbatch")) == (2, [])
    assert "the time limit of a training, 30, is not more than" in done.stderr


def test_the_verbs_are_those_of_wsiad():
    script = 'source "$0"; printf "%s\\n" "$VERBS" "$ON_DEVICE"'
    shown = subprocess.run(
        ["bash", "-c", script, SLURM / "site_check.sh"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    verbs, on_device = (line.split(" ") for line in shown.splitlines())
    assert verbs == list(VERBS)
    with_device = {
        verb for verb in VERBS if "device" in config_class(function_of(verb)).model_fields
    }
    assert set(on_device) == with_device


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("12:00:00", 690), ("45", 15), ("31:30", 1), ("09:08:07", 518),
        ("1-00:00:00", 1410), ("2-03", 3030), ("2-03:08", 3038), ("UNLIMITED", None),
    ],
)  # fmt: skip
def test_a_training_ends_the_reserve_before_its_job(site, limit, minutes):
    assert site.job("train", "store", "--out", "a run", TIME_LIMIT=limit).returncode == 0
    assert site.noted("squeue") == [["--noheader", "--jobs=77", "--format=%l"]]
    given = parsed(site.noted("wsiad")[0])
    assert (given["store"], given["out"]) == ("store", "a run")
    assert given.get("max_minutes") == (minutes and str(minutes))


def test_flags_of_the_command_win_over_those_of_the_job(site):
    site.job("train", "store", "--out", "run", "--max-minutes", "5", "--device", "cpu",
             SLURM_JOB_GPUS="0")  # fmt: skip
    given = parsed(site.noted("wsiad")[0])
    assert (given["max_minutes"], given["device"]) == ("5", "cpu")


@pytest.mark.parametrize(
    ("text", "minutes", "device"),
    [
        ("max_minutes: 5\ndevice: cpu\n", None, None),
        ("max_minutes: null\ndevice: auto\n", "690", "cuda"),  # as wsiad writes what nobody said
        ("detector: dpa\noptions:\n  max_minutes: 5\n", "690", "cuda"),
    ],
)
def test_minutes_and_device_of_a_config_are_used(site, text, minutes, device):
    (site.root / "c.yaml").write_text(text)
    site.job("train", "store", "--out", "run", "--config", "c.yaml", SLURM_JOB_GPUS="0")
    given = parsed(site.noted("wsiad")[0])
    assert (given.get("max_minutes"), given.get("device")) == (minutes, device)


@pytest.mark.parametrize("verb", ["tile", "heatmap"])
def test_a_job_of_an_array_takes_its_share(site, verb):
    slides = ["my slides/", "--out", "a store"]
    words = [verb, *(["a run"] if verb == "heatmap" else []), *slides]
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "2"}  # of --array=3,7, by hand
    assert site.job(*words, shards=20, SLURM_CPUS_PER_TASK="4", **array).returncode == 0
    given = parsed(site.noted("wsiad")[0])
    assert (given["slides"], given["out"]) == (["my slides/"], "a store")
    assert (given["shard"], given["workers"], given["stage_dir"]) == (
        "3/20", "4", f"{site.root}/fast disk",
    )  # fmt: skip
    assert "device" not in given


USABLE = Check("device", "ok", "2 × H200")
NOT_USABLE = Check("device", "note", "no GPU; 4 CPU threads")


def doctor(site, device: Check) -> None:
    """Let `wsiad doctor` find this device, as it writes it."""
    checks = [Check("packages", "ok", "wsiad"), device, Check("machine", "ok", "4 cores")]
    found = json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False)
    (site.root / "found.json").write_text(found)
    site.wsiad(f'[ "$1" != doctor ] || {{ cat "{site.root}/found.json"; exit 1; }}')


HEATMAP, EMBED = ["heatmap", "run", "s", "--out", "o"], ["embed", "store"]


@pytest.mark.parametrize("words", [HEATMAP, EMBED])
@pytest.mark.parametrize(
    ("gpus", "device"), [("2", "cuda"), ("0,1", None), ("0-3", None), ("", None)]
)
def test_a_job_has_the_gpus_that_it_was_given(site, words, gpus, device):
    doctor(site, USABLE)
    assert site.job(*words, SLURM_JOB_GPUS=gpus).returncode == 0
    assert parsed(site.noted("wsiad")[-1]).get("device") == device


def test_gpus_that_wsiad_cannot_use_are_an_error(site):
    doctor(site, NOT_USABLE)
    for words in (HEATMAP, EMBED):
        done = site.job(*words, SLURM_JOB_GPUS="0,1")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "GPUs 0,1 of node" in done.stderr
        assert "wsiad cannot use them" in done.stderr
    assert {words[0] for words in site.noted("wsiad")} == {"doctor"}
    assert site.job(*HEATMAP, "--device=cpu", SLURM_JOB_GPUS="0,1").returncode == 0
    assert site.job(*HEATMAP, "--cluster", "c.yaml", SLURM_JOB_GPUS="0").returncode == 0
    assert "device" not in parsed(site.noted("wsiad")[-1])


def test_any_verb_that_computes_takes_the_gpu_of_its_job(site):
    site.job("refine", "run", "results", "--out", "o", SLURM_JOB_GPUS="0")
    assert parsed(site.noted("wsiad")[-1])["device"] == "cuda"
    site.job("evaluate", "results", "--reference", "r.csv", SLURM_JOB_GPUS="0")
    assert "--device" not in site.noted("wsiad")[-1]


def test_a_job_begins_only_where_nothing_is_left_of_those_before(site):
    state = '{"slides": %s, "left": [%s], "running": [%s]}'
    site.wsiad('[ "$1" != status ] || { cat "$2/state"; exit 1; }')
    folder = site.root / "the results"
    folder.mkdir()
    evaluate = ["evaluate", "the results", "--reference", "r.csv"]
    for values in (("2", '"b"', ""), ("2", "", '"b"'), ("null", "", "")):
        (folder / "state").write_text(state % values)
        done = site.job(*evaluate, complete=["the results"])
        assert done.returncode == 2
        assert "the results: not all its slides have been worked on" in done.stderr
    (folder / "state").write_text(state % ("2", "", ""))
    assert site.job(*evaluate, complete=["the results"]).returncode == 0
    assert site.noted("wsiad")[-2:] == [["status", "the results", "--json"], evaluate]


def test_the_exit_code_is_that_of_wsiad(site):
    site.wsiad("exit 1")
    assert site.job("tile", "s", "--out", "o").returncode == 1


SLOW = """
trap 'echo ended >> "{root}/end"; exit 143' TERM
touch "{root}/started"
for i in $(seq 300); do sleep 0.1; done
"""


def stopped(site, *signals, **environment):
    """Run a training that a signal stops; returns its exit code and what it said."""
    site.wsiad(SLOW.format(root=site.root))
    with subprocess.Popen(
        site.job_words("train", "store", "--out", "run"), env=site.environment(**environment),
        cwd=site.root, stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        end = time.monotonic() + 30
        while not (site.root / "started").exists() and time.monotonic() < end:
            time.sleep(0.05)
        for number in signals:
            job.send_signal(number)
        _, said = job.communicate(timeout=30)
    assert (site.root / "end").read_text() == "ended\n"
    return job.returncode, said


def test_a_signal_before_the_walltime_ends_wsiad_and_queues_the_job_again(site):
    code, said = stopped(site, signal.SIGUSR1)
    assert (code, site.noted("scontrol")) == (143, [["requeue", "77"]])
    assert "queued again, and goes on then" in said


@pytest.mark.parametrize("job", ["77", "80"])
def test_of_an_array_only_the_task_that_was_stopped_is_queued_again(site, job):
    """One task of an array has the array's own number as SLURM_JOB_ID."""
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": job}
    code, _ = stopped(site, signal.SIGUSR1, **array)
    assert (code, site.noted("scontrol")) == (143, [["requeue", "77_3"]])


@pytest.mark.parametrize("place", ["status", "environment"])
@pytest.mark.parametrize(("name", "queued"), [("USR1", [["requeue", "77"]]), ("TERM", [])])
def test_a_signal_before_wsiad_starts_is_heard_as_one_that_comes_later(site, place, name, queued):
    kill = f"{{ kill -{name} $JOB; sleep 0.2; }}"
    site.wsiad(f'[ "$1" != status ] || {kill}')
    with site.settings.open("a") as file:
        file.write("export JOB=$$\n")
        if place == "environment":
            file.write(f"ENVIRONMENT=module MODULES=(w)\nmodule() {kill}\n")
    done = site.job("train", "store", "--out", "run", complete=["store"])
    assert (done.returncode, site.noted("scontrol")) == (143, queued)
    assert [words[0] for words in site.noted("wsiad")] == (["status"] if place == "status" else [])


def test_a_job_that_is_queued_again_without_end_is_given_up(site):
    code, said = stopped(site, signal.SIGUSR1, SLURM_RESTART_COUNT="2")
    assert (code, site.noted("scontrol")) == (143, [])
    assert "after MOST_REQUEUES (2) new starts. Raise --time" in said


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGUSR1, signal.SIGTERM)])
def test_a_job_that_is_cancelled_is_not_queued_again(site, signals):
    code, _ = stopped(site, *signals)
    assert (code, site.noted("scontrol")) == (143, [])


def test_a_command_that_was_done_when_the_signal_came_is_not_queued_again(site):
    site.wsiad("trap '' TERM; kill -USR1 $PPID; sleep 0.5; exit 1")
    assert site.job("tile", "s", "--out", "o").returncode == 1
    assert site.noted("scontrol") == []


def test_environments_of_a_site(site):
    path = site.root / "an environment" / "bin" / "wsiad"
    with site.settings.open("a") as file:
        file.write(
            'CONDA="$PWD/conda" CONDA_ENVIRONMENT=w MODULES=(python "wsiad 1") IMAGE="$PWD/a.sif"\n'
            'IMAGE_OPTIONS=(--nv --bind "/my data")\n'
            f'module() {{ printf \'%s|\' "$@" >> entered; PATH="{path.parent}:$PATH"; }}\n'
            "ENVIRONMENT=$CHOSEN\n"
        )
    profile = site.root / "conda" / "etc" / "profile.d" / "conda.sh"
    profile.parent.mkdir(parents=True)
    profile.write_text(
        f'conda() {{ printf \'%s|\' "$@" $UNSET >> entered; PATH="{path.parent}:$PATH"; }}\n'
    )
    for chosen, entered in (("conda", "activate|w|"), ("module", "load|python|wsiad 1|")):
        assert site.job("tile", "s", "--out", "o", CHOSEN=chosen).returncode == 0
        assert (site.root / "entered").read_text() == entered
        (site.root / "entered").unlink()
    done = site.job("tile", "s", "--out", "o", CHOSEN="apptainer")
    assert done.returncode == 2
    assert "a.sif: no image on node" in done.stderr
    (site.root / "a.sif").touch()
    site.command("apptainer", "")
    assert site.job("tile", "s", "--out", "o", CHOSEN="apptainer").returncode == 0
    assert site.noted("apptainer") == [
        ["run", "--nv", "--bind", "/my data", "--bind", f"{site.root}/fast disk",
         f"{site.root}/a.sif", "tile", "--workers", "1", "--stage-dir", f"{site.root}/fast disk",
         "s", "--out", "o"],
    ]  # fmt: skip
    assert (site.root / "fast disk").is_dir()  # a folder that is not there cannot be bound
    site.job("train", "s", "--out", "o", CHOSEN="apptainer")
    assert site.noted("apptainer")[-1][:5] == [
        "run",
        "--nv",
        "--bind",
        "/my data",
        f"{site.root}/a.sif",
    ]
    (path.parent / "wsiad").unlink()
    done = site.job("tile", "s", "--out", "o", CHOSEN="venv")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "Correct VENV in" in done.stderr
