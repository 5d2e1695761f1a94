"""How much a device is given at once."""

from types import SimpleNamespace

import pytest
import torch

from wsiad.core.errors import ConfigError
from wsiad.learning.devices import choose_device, windows_at_once, worker_number


@pytest.mark.parametrize(
    ("batch", "edge", "windows"),
    [(256, 64, 32), (256, 96, 14), (256, 256, 2), (256, 2048, 1), (8, 64, 8), (1, 64, 1)],
)
def test_a_cpu_is_given_less_the_larger_the_windows(batch, edge, windows):
    assert windows_at_once(batch, torch.device("cpu"), edge=edge) == windows


@pytest.mark.parametrize(
    ("batch", "edge", "windows"),
    [(256, 224, 256), (600, 224, 600), (5000, 224, 668), (256, 2048, 8), (9, 8192, 1)],
)
def test_a_gpu_is_given_what_was_asked_for_within_a_bound_of_memory(batch, edge, windows):
    assert windows_at_once(batch, torch.device("cuda"), edge=edge) == windows


def gpus(monkeypatch, count):
    """Imitate a machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "worker", "device"),
    [(0, 3, "cpu"), (1, 3, "cuda"), (4, None, "cuda"), (4, 0, "cuda:0"), (4, 3, "cuda:3"),
     (4, 6, "cuda:2"), (2, 7, "cuda:1")],
)  # fmt: skip
def test_workers_take_the_gpus_of_a_machine_in_turn(monkeypatch, count, worker, device):
    gpus(monkeypatch, count)
    monkeypatch.setattr("wsiad.learning.devices.worker_number", lambda: worker)
    assert choose_device("auto") == torch.device(device)
    assert choose_device("cpu") == torch.device("cpu")
    if count:
        assert choose_device("cuda:0") == torch.device("cuda:0")


def test_a_job_that_was_given_gpus_does_not_compute_on_the_cpu_in_silence(monkeypatch):
    jobless(monkeypatch)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    gpus(monkeypatch, 0)
    said = r"was given GPUs \(SLURM_JOB_GPUS=0,1\), which PyTorch cannot use"
    with pytest.raises(ConfigError, match=said):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")
    gpus(monkeypatch, 1)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("job", ["PBS_JOBID", "LSB_JOBID", "SGE_JOB_SPOOL_DIR"])
def test_gpus_of_other_batch_systems_are_those_that_cuda_is_shown(monkeypatch, job):
    jobless(monkeypatch)
    gpus(monkeypatch, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert choose_device("auto") == torch.device("cpu")  # of a profile, where there is no job
    monkeypatch.setenv(job, "17")
    for given in ("0", "1,3", "GPU-5ebe9f43,GPU-6b3a", "MIG-GPU-5ebe9f43/1/0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        with pytest.raises(ConfigError, match=rf"\(CUDA_VISIBLE_DEVICES={given}\), which PyTorch"):
            choose_device("auto")
    for none in ("", " ", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert choose_device("auto") == torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert choose_device("auto") == torch.device("cpu")


def jobless(monkeypatch):
    """Forget the job, if there is one, in which the tests run."""
    for name in ("SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "PBS_JOBID", "LSB_JOBID",
                 "SGE_JOB_SPOOL_DIR"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "number"), [("local-7-2", 2), ("SLURMCluster-3-1", 1), ("tcp://10.0.0.1:80", None)]
)
def test_a_worker_has_the_last_number_of_its_name(monkeypatch, name, number):
    import distributed

    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=name))
    assert worker_number() == number
