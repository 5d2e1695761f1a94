"""The file of a batch cluster, and the script of its jobs, without a cluster."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wsiad.compute.compute_options import ComputeOptions
from wsiad.compute.jobs import JobsConfig, job_script, read_jobs, walltime_minutes
from wsiad.compute.tasks import run_tasks
from wsiad.core.config import build
from wsiad.core.errors import ClusterError, ConfigError

ROOT = Path(__file__).parents[2]

DIRECTIVES = {
    "slurm": [
        "#SBATCH -J wsiad",
        "#SBATCH -p standard",
        "#SBATCH -A mylab",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=15G",  # 16 GB in GiB, rounded up
        "#SBATCH -t 04:00:00",
    ],
    "pbs": [
        "#PBS -N wsiad",
        "#PBS -q workq",
        "#PBS -A mylab",
        "#PBS -l select=1:ncpus=4:mem=16gb",
        "#PBS -l walltime=04:00:00",
    ],
    "lsf": [
        "#BSUB -J wsiad",
        "#BSUB -q normal",
        '#BSUB -P "mylab"',
        "#BSUB -n 4",
        '#BSUB -R "span[hosts=1]"',
        "#BSUB -W 04:00",
    ],
    "sge": [
        "#$ -N wsiad",
        "#$ -q all.q",
        "#$ -P mylab",
        "#$ -l h_vmem=4G",
        "#$ -l h_rt=04:00:00",
        "#$ -pe smp 4",
    ],
}


@pytest.mark.parametrize("scheduler", DIRECTIVES)
def test_shipped_files_make_the_job_that_they_describe(scheduler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folder of the logs is made
    text = job_script(read_jobs(ROOT / "configs" / f"{scheduler}.yaml"))
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert [line for line in DIRECTIVES[scheduler] if line not in lines] == []
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert f"export {name}=1" in lines
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False" in lines
    worker = lines[-1]
    assert worker.startswith(f"{sys.executable} -m distributed.cli.dask_worker ")
    for flags in (
        "--nthreads 1",
        "--nworkers 4",
        "--memory-limit 3.73GiB",
        "--nanny",
        "--worker-class wsiad.compute.job_worker.SlideWorker",
        # 4 h less 30 min, less a twentieth for the stagger.
        "--lifetime 11970s --lifetime-stagger 630s",
        "--interface ",
    ):
        assert flags in worker, flags
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def jobs(**changes):
    values = {"scheduler": "slurm", "jobs": 2, "memory": "4GB", "walltime": "01:00:00"}
    return build(JobsConfig, values | changes)


def test_what_a_site_asks_for_is_in_the_script():
    text = job_script(
        jobs(
            job_extra_directives=["--qos=short", "--exclude=n7"],
            job_directives_skip=["--mem"],
            job_script_prologue=["module load python", "source venv/bin/activate"],
            python="/opt/python",
            local_directory="/scratch",
            name="mine",
        )
    )
    lines = text.splitlines()
    assert "#SBATCH --qos=short" in lines
    assert "#SBATCH --exclude=n7" in lines
    assert "#SBATCH -J mine" in lines
    assert "--mem=" not in text
    assert lines.index("module load python") < lines.index("source venv/bin/activate")
    assert lines[-1].startswith("/opt/python -m distributed.cli.dask_worker")
    assert "--local-directory /scratch" in lines[-1]
    assert "--nworkers" not in lines[-1]


@pytest.mark.parametrize(
    ("walltime", "margin", "latest"),
    [
        ("04:00:00", None, 216),  # a tenth is left
        ("00:20:00", None, 15),  # at least 5 minutes
        ("00:06:00", None, 3),  # but no more than half
        ("1-00:00:00", 60, 23 * 60),
        ("01:00:00", 0, 60),
    ],
)
def test_no_slide_is_begun_in_the_margin(walltime, margin, latest):
    lifetime, stagger = jobs(walltime=walltime, margin_minutes=margin).lifetime_minutes
    assert lifetime + stagger == pytest.approx(latest)
    assert 0 < stagger < lifetime


def test_no_walltime_no_lifetime():
    config = jobs(walltime=None)
    assert config.lifetime_minutes is None
    assert "--lifetime" not in job_script(config)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("00:30:00", 30), ("2-00:00:00", 2880), ("10:15", 615), ("100:00:00", 6000)],
)
def test_walltimes(text, minutes):
    assert walltime_minutes(text) == minutes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"walltim": "1"}, r"unknown key \(did you mean 'walltime'\?\)"),
        ({"scheduler": "slrum"}, "scheduler: 'slrum' is not allowed; it should be 'slurm', "),
        ({"memory": "lots"}, "memory: string should match"),
        ({"memory": "4000"}, "memory: string should match"),
        ({"jobs": 0}, "jobs: 0 is not allowed; it should be greater than or equal to 1"),
        ({"walltime": 43200}, "should be in quotes"),
        ({"walltime": "4h"}, "is not HH:MM:SS"),
        ({"walltime": "00:00:00"}, "is not above 0"),
        ({"walltime": "30:00"}, "`walltime` is HH:MM:SS"),
        ({"scheduler": "lsf"}, "of LSF is HH:MM"),
        ({"margin_minutes": 60}, "leave nothing"),
        ({"walltime": None, "margin_minutes": 6}, "needs a `walltime`"),
        ({"resource_spec": "x"}, "use `job_extra_directives`"),
    ],
)
def test_files_that_are_wrong(changes, said):
    with pytest.raises(ConfigError, match=said):
        jobs(**changes)


def test_an_unquoted_walltime_is_not_taken_as_a_number(tmp_path):
    """YAML 1.1 reads 12:30:00 as 45000."""
    path = tmp_path / "c.yaml"
    path.write_text("scheduler: slurm\njobs: 1\nmemory: 1GB\nwalltime: 12:30:00\n")
    assert yaml.safe_load(path.read_text())["walltime"] == 45000
    with pytest.raises(ConfigError, match=r"c\.yaml.*in quotes"):
        read_jobs(path)


def run(tmp_path, values, items=(1, 2)):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    options = ComputeOptions(cluster=path)
    return list(run_tasks(abs, items, options=options, failed=lambda item, reason: reason))


SLURM = {"scheduler": "slurm", "jobs": 1, "memory": "1GB"}


def test_ctrl_c_means_the_same_with_dask_jobqueue():
    """Its import makes Ctrl-C end the process with code 0, as if all were done."""
    code = (
        "import signal\n"
        "from wsiad.compute.jobs import cluster_class\n"
        "cluster_class('slurm')\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_without_dask_jobqueue_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ClusterError, match=r"pip install 'wsiad\[hpc\]'"):
        run(tmp_path, SLURM)


def test_without_a_batch_system_it_is_said_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="slurm: its command 'sbatch' is not on this machine"):
        run(tmp_path, SLURM)


def test_local_jobs_need_no_batch_system(tmp_path):
    values = {"scheduler": "local", "jobs": 1, "cores": 2, "memory": "1GB"}
    assert sorted(run(tmp_path, values, [-1, -2, -3])) == [1, 2, 3]
    with pytest.raises(ClusterError, match="has no job script"):
        job_script(build(JobsConfig, values))
