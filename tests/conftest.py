"""Settings for all tests."""

import os

import pytest
import torch

# One process, two cores: threads of BLAS, OpenMP and torch would fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    torch.set_num_threads(1)
