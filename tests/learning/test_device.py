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
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"was given GPUs \(0,1\), which PyTorch cannot use"):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")
    gpus(monkeypatch, 1)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "number"), [("local-7-2", 2), ("SLURMCluster-3-1", 1), ("tcp://10.0.0.1:80", None)]
)
def test_a_worker_has_the_last_number_of_its_name(monkeypatch, name, number):
    import distributed

    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=name))
    assert worker_number() == number
