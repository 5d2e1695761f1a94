"""Settings for all tests."""

import os
import threading

# One process, two cores: threads of BLAS, OpenMP and torch would fight each other. Read when
# the libraries are loaded, so before them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Python 3.14 colours help, 3.13 tracebacks, where these ask for it; tests read the plain text.
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("PYTHON_COLORS", None)

import pytest

try:
    import torch
except ModuleNotFoundError:  # a smoke of another Python does without its gigabytes
    torch = None


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture
def browser(tmp_path):
    """A page in a browser of its own; tests that take it are marked ``needs_browser``."""
    from support.browser import Browser

    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


@pytest.fixture
def serve():
    """A function that serves results as ``wsiad view`` does, until the end of the test."""
    from wsiad.verbs.view import ViewConfig, open_server

    started = []

    def start(results, **values):
        server = open_server(ViewConfig(results=results, browser=False, **values))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def scored_pair(tmp_path_factory):
    """A folder with ``store``, ``runs/colour`` and ``results`` of two slides."""
    from support.scored_pair import score_pair

    folder = tmp_path_factory.mktemp("scored")
    score_pair(folder)
    return folder
