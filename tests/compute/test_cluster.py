"""Tasks in this process, in workers and on a scheduler, and what becomes of a lost worker."""

import os
import time
from pathlib import Path

import pytest

from support.tasks import double, run
from wsiad.compute.compute_options import ComputeOptions, take_shard
from wsiad.core.config import build
from wsiad.core.errors import ClusterError, ConfigError


def test_one_worker_keeps_the_order_in_this_process():
    assert run(double, [3, 1, 2]) == [6, 2, 4]
    assert run(double, [], workers=4) == []


def test_workers_are_other_processes_with_one_thread_each():
    def where(item):
        return os.getpid(), os.environ["OMP_NUM_THREADS"]

    found = run(where, [1, 2, 3], workers=2)
    assert os.getpid() not in {process for process, _ in found}
    assert {threads for _, threads in found} == {"1"}


def test_a_worker_is_never_paused_for_its_memory():
    """It would wait for ever: what a slide has left in memory is not dask's to free."""

    def fractions(item):
        from distributed import get_worker

        return str(get_worker().memory_manager.memory_pause_fraction)

    assert set(run(fractions, [1, 2, 3], workers=2)) == {"False"}


def fragile(folder, deaths):
    """Make a task that dies, as a process that ran out of memory is killed, some times."""

    def work(item):
        if item == 2:
            (folder / f"try-{time.monotonic_ns()}").touch()
            if len(list(folder.iterdir())) <= deaths:
                os._exit(1)
        time.sleep(0.05)
        return item * 2

    return work


def test_a_lost_worker_loses_nothing_when_tried_again(tmp_path):
    found = run(fragile(tmp_path, 1), [1, 2, 3, 4], workers=2)
    assert sorted(found) == [2, 4, 6, 8]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("retries", [0, 2])
def test_a_task_that_kills_its_workers_is_given_up_alone(tmp_path, retries):
    found = run(fragile(tmp_path, 99), [1, 2, 3, 4], workers=2, retries=retries)
    bad, *good = sorted(found, key=lambda value: isinstance(value, int))
    assert sorted(good) == [2, 6, 8]
    assert bad.startswith(f"2 failed: its worker was lost {retries + 1} time")
    assert len(list(tmp_path.iterdir())) == retries + 1


def test_a_running_scheduler_does_the_work():
    from distributed import LocalCluster

    def process(item):
        return os.getpid()

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
    ) as cluster:
        found = run(process, [1, 2], scheduler=cluster.scheduler_address)
        assert set(found) == {cluster.workers[0].process.pid}
        # It is theirs: it is still there afterwards.
        assert run(process, [1], scheduler=cluster.scheduler_address) == found[:1]


def test_no_scheduler_at_an_address_is_an_error(monkeypatch):
    import distributed

    def unreachable(address, **_):
        raise OSError(f"Timed out trying to connect to {address}")

    monkeypatch.setattr(distributed, "Client", unreachable)
    with pytest.raises(ClusterError, match=r"tcp://127.0.0.1:9: no dask scheduler can be reached"):
        run(double, [1], scheduler="tcp://127.0.0.1:9")


def test_a_worker_at_the_end_of_its_life_finishes_its_task(tmp_path):
    """And takes no other: it is gone then."""
    from distributed import Client, LocalCluster

    from wsiad.compute.job_worker import SlideWorker

    def slow(item):
        (tmp_path / f"{item}-{time.monotonic_ns()}").touch()
        time.sleep(2)
        return item

    def end(dask_worker):  # as dask does after --lifetime
        dask_worker.loop.add_callback(dask_worker.close_gracefully)

    def until(holds):
        limit = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < limit
            time.sleep(0.1)

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            worker_class=SlideWorker,
        ) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(slow, "a", pure=False)
        until(lambda: list(tmp_path.iterdir()))
        client.run(end)
        assert future.result(timeout=60) == "a"
        future.release()
        until(lambda: not client.nthreads())
    assert len(list(tmp_path.iterdir())) == 1


def test_shards_are_apart_and_whole():
    items = list(range(11))
    parts = [take_shard(items, f"{part}/4") for part in range(1, 5)]
    assert sorted(item for part in parts for item in part) == items
    assert take_shard(items, "2/4") == [1, 5, 9]
    assert take_shard(items, "12/12") == []
    assert take_shard(items, None) == items


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", "1/4/2", ""])
def test_shards_that_are_none(text):
    with pytest.raises(ConfigError, match="i/n with i from 1 to n"):
        build(ComputeOptions, {"shard": text})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cluster": "c.yaml", "scheduler": "tcp://h:1"}, "set `cluster`"),
        ({"cluster": "c.yaml", "workers": 4}, "leave it out with `cluster`"),
        ({"scheduler": "tcp://h:1", "workers": 4}, "leave it out with `scheduler`"),
        ({"cluster": "c.yaml", "shard": "1/2"}, "leave out `shard`"),
        ({"retries": -1}, "retries"),
    ],
)
def test_options_that_contradict_each_other(values, said):
    with pytest.raises(ConfigError, match=said):
        build(ComputeOptions, values)


def test_a_missing_file_of_a_cluster_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        run(double, [1], cluster=Path(tmp_path / "gone.yaml"))
