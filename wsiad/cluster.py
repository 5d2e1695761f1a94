"""Many slides: one task each, in this process or in local dask workers."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    failed: Callable[[Item, BaseException], Result],
) -> Iterator[Result]:
    """Apply a function to items and yield results as they are ready.

    Parameters
    ----------
    function : callable
        Picklable; catches what can go wrong with an item itself.
    items : sequence
        Picklable; one task each.
    workers : int
        1 runs in this process and in order; more start that many local processes.
    failed : callable
        Makes a result for an item whose task was lost, such as by a worker that ran
        out of memory and was killed.
    """
    if workers == 1 or len(items) <= 1:
        yield from map(function, items)
        return
    # Imported here: starting the scheduler's machinery costs a second. It sets up its own
    # loggers on import and narrates every connection unless told otherwise.
    import dask

    dask.config.set(
        {
            "logging.distributed": "error",
            # One slide at a time to a worker: a slide that kills its worker would
            # otherwise take those that wait behind it along.
            "distributed.scheduler.worker-saturation": 1.0,
        }
    )
    from distributed import Client, LocalCluster, as_completed

    with (
        _one_thread_each(),
        LocalCluster(
            n_workers=min(workers, len(items)),
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            # A worker that is killed for memory would be restarted on the same slide
            # for ever; the scheduler gives a task up after `allowed-failures`.
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = {client.submit(function, item, pure=False): item for item in items}
        for future in as_completed(futures):
            error = future.exception()
            yield failed(futures[future], error) if error else future.result()
            future.release()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let worker processes start with one thread: N workers of N threads fight."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
