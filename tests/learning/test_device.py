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


def test_a_gpu_is_given_what_was_asked_for():
    assert windows_at_once(256, torch.device("cuda"), edge=2048) == 256
