"""How much a device is given at once."""

import pytest
import torch

from wsiad.learning.devices import windows_at_once


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
