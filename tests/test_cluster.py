"""Tasks in this process and in local workers, and what becomes of a lost worker."""

import os
import time

from wsiad.cluster import run_tasks


def double(item):
    return item * 2


def fragile(item):
    """Dies, as a process that ran out of memory is killed, on one item."""
    if item == 2:
        os._exit(1)
    time.sleep(0.05)
    return item * 2


def lost(item, error):
    return f"{item} was lost: {type(error).__name__}"


def test_one_worker_keeps_the_order_in_this_process():
    assert list(run_tasks(double, [3, 1, 2], workers=1, failed=lost)) == [6, 2, 4]
    assert list(run_tasks(double, [], workers=4, failed=lost)) == []


def test_workers_are_other_processes_with_one_thread_each():
    def where(item):
        return os.getpid(), os.environ["OMP_NUM_THREADS"]

    found = list(run_tasks(where, [1, 2, 3], workers=2, failed=lost))
    assert os.getpid() not in {process for process, _ in found}
    assert {threads for _, threads in found} == {"1"}


def test_a_lost_worker_loses_its_task_only():
    found = list(run_tasks(fragile, [1, 2, 3, 4], workers=2, failed=lost))
    assert sorted(map(str, found)) == ["2", "2 was lost: KilledWorker", "6", "8"]
