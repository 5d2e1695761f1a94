"""Run one task per slide: in this process, in local workers, or on a cluster."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

from wsiad.compute.compute_options import WorkerOptions
from wsiad.compute.jobs import MEMORY, JobsConfig, close_client, read_jobs
from wsiad.core.errors import ClusterError
from wsiad.core.signals import begun
from wsiad.core.terminal import counted

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_WATCH_SECONDS = 2.0
_FETCH_SECONDS = 30.0
_PATIENCE_SECONDS = 10.0
"""Seconds without a worker after which the user is told that slides wait for workers."""
_TRIES = 5
"""Maximum tries to fetch a result, and to run a task, if dask loses it and no worker exited."""


def _no_notice(text: str) -> None:
    logger.info("%s", text)


def _unknown(item: object) -> None:
    return None


def _safe(item: object) -> bool:
    return False


def _unnoted(item: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _nothing_more(item: object, result: object) -> Sequence[Any]:
    return ()


def run_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    options: WorkerOptions,
    failed: Callable[[Item, str], Result],
    notice: Callable[[str], None] = _no_notice,
    more: Callable[[Item, Result], Sequence[Item]] = _nothing_more,
    whole: Callable[[Item], Result | None] = _unknown,
    noted: Callable[[Item], contextlib.AbstractContextManager[None]] = _unnoted,
    apart: Callable[[Item], bool] = _safe,
) -> Generator[Result, None, None]:
    """Apply a function to items and yield the results as they become ready.

    A caller that stops early must close the generator (``contextlib.closing``), which stops its
    workers.

    Parameters
    ----------
    function : callable
        Function to apply; picklable. It catches the errors of an item itself.
    items : sequence
        Items, one task each; picklable.
    options : WorkerOptions
        Number and place of the workers. One worker is this process, which keeps the order.
    failed : callable
        Function of an item and a reason that makes a result, if the item's task was lost more
        often than `options.retries` allows: for example, if workers ran out of memory.
    notice : callable
        Function that is called with a text when slides wait for workers.
    more : callable
        Function of an item and its result that returns the items that follow.
    whole : callable
        Function of an item that returns its result if its output is complete. It is called
        before a task counts as lost.
    noted : callable
        Function of an item that returns the context in which this process works on it.
    apart : callable
        Function of an item that tells whether it needs a separate process, because it may kill
        the process that works on it.

    Raises
    ------
    ClusterError
        The cluster or scheduler does not exist or accepts no jobs, workers do not start, or the
        scheduler is lost.
    ConfigError
        The YAML file of the cluster is not valid.
    """
    jobs = read_jobs(options.cluster) if options.cluster is not None else None

    def in_workers(some: Sequence[Item], how: WorkerOptions) -> Iterator[Result]:
        losses = _Losses(failed, whole)
        with _machinery(how.retries), _place(how, jobs, len(some)) as (client, count):
            yield from _results(
                client, function, items=some, losses=losses, more=more, room=_Room(count, notice)
            )

    def in_turn(item: Item) -> tuple[Sequence[Result], Sequence[Item]]:
        with noted(item):
            if apart(item):
                alone = options.model_copy(update={"workers": 1, "retries": 0})
                return list(in_workers([item], alone)), []
            result = function(item)
            return [result], more(item, result)

    here = jobs is None and options.scheduler is None
    if here and len(items) == 1 and options.workers > 1:
        # No workers for one item, unless others follow from it.
        results, items = in_turn(items[0])
        yield from results
    if not items or (here and options.workers == 1):
        unsent = deque(items)
        while unsent:
            results, following = in_turn(unsent.popleft())
            unsent.extend(following)
            yield from results
        return
    yield from in_workers(items, options)


def workers_of(options: WorkerOptions) -> int:
    """Return the maximum number of workers; 1 where only a running scheduler knows it.

    Raises
    ------
    ConfigError
        The YAML file of the cluster is not valid.
    """
    if options.cluster is None:
        return options.workers
    jobs = read_jobs(options.cluster)
    return jobs.jobs * jobs.cores


@contextlib.contextmanager
def _machinery(retries: int) -> Iterator[None]:
    """Import and configure dask."""
    # Imported here: starting the scheduler's machinery costs a second. It sets up its own
    # loggers on import and narrates every connection unless told otherwise.
    import dask

    # What its scheduler says of lost workers and tasks is said here, of slides.
    levels = {"distributed": "error", "distributed.scheduler": "critical"}
    dask.config.set({"logging": dask.config.get("logging", {}) | levels})
    import distributed  # noqa: F401 - adds its defaults to dask's configuration

    settings = MEMORY | {
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.scheduler.allowed-failures": retries,
    }
    with dask.config.set(settings):
        yield


def _results(
    client: Any,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    losses: _Losses[Item, Result],
    more: Callable[[Item, Result], Sequence[Item]],
    room: _Room,
) -> Iterator[Result]:
    """Hand out as many items at a time as there are workers.

    An item that waited at a worker would be lost too if the item before it kills the worker.
    """
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    unsent = deque((item, 1) for item in items)
    sent: dict[str, tuple[Any, Item, int]] = {}

    def look() -> int:
        return room.slides(len(unsent) + len(sent))

    while unsent or sent:
        free = look() - len(sent)
        for _ in range(min(free, len(unsent))):
            item, tries = unsent.popleft()
            future = _submit(client, function, item)
            sent[future.key] = (future, item, tries)
            future.add_done_callback(done.put)
        try:
            future = done.get(timeout=_WATCH_SECONDS)
        except queue.Empty:
            continue
        _, item, tries = sent[future.key]
        results: Sequence[Result] = ()
        try:
            results = [_result(future, look)]
        except (Exception, CancelledError) as error:
            # The function has caught all that is the item's own fault.
            look()  # how its worker ended is said before the last slide is done
            results = losses.settle(item, error, tries)
        del sent[future.key]
        if not results:
            unsent.append((item, tries + 1))
        for result in results:
            unsent.extend((other, 1) for other in more(item, result))
            yield result
        future.release()


class _Losses(Generic[Item, Result]):
    """Decides about tasks whose results do not arrive."""

    def __init__(
        self, failed: Callable[[Item, str], Result], whole: Callable[[Item], Result | None]
    ) -> None:
        self._failed, self._whole = failed, whole

    def settle(self, item: Item, error: BaseException, tries: int) -> Sequence[Result]:
        """Return the item's result, or nothing if the item should be tried again.

        An item is lost only if it killed its workers. All other errors that dask raises are
        troubles of dask, as under load; the item may be done nevertheless.
        """
        from distributed.scheduler import KilledWorker

        if (result := self._whole(item)) is not None:
            logger.info("a result was lost (%s), but its output is complete", type(error).__name__)
            return [result]
        if isinstance(error, KilledWorker) or tries >= _TRIES:
            return [self._failed(item, _reason(error))]
        logger.warning("a task was lost (%s: %s); it is tried again", type(error).__name__, error)
        return []


def _submit(client: Any, function: Callable[[Item], Result], item: Item) -> Any:
    """Hand an item to a scheduler.

    Raises
    ------
    ClusterError
        The connection to the scheduler is lost, which is not the fault of an item.
    """
    end = time.monotonic() + _FETCH_SECONDS
    while client.status == "connecting" and time.monotonic() < end:
        time.sleep(0.1)
    try:
        if client.status == "running":
            return client.submit(function, item, pure=False)
    except Exception:
        if client.status == "running":
            raise
    raise ClusterError(
        "the connection to it was lost",
        subject="dask's scheduler",
        remedy="Run the same command again to continue; complete slides were kept.",
    )


def _result(future: Any, look: Callable[[], int]) -> Any:
    """Fetch the result of a task that is done.

    The result is still at its worker. If it is lost before it is fetched, dask computes it again,
    which needs workers; `look` keeps them alive meanwhile. If dask's own waiting was cancelled, it
    raises an unrelated error (an ``UnboundLocalError`` in its ``sync``), and the result is
    fetched again.
    """
    seconds, tries = _WATCH_SECONDS, 1
    while True:
        try:
            return future.result(timeout=seconds)
        except TimeoutError:
            if future.status == "error":
                raise  # the task's own
            seconds = min(2 * seconds, _FETCH_SECONDS)
        except (Exception, CancelledError) as error:
            if future.status in ("error", "cancelled") or tries >= _TRIES:
                raise
            logger.info("a result is fetched again (%s: %s)", type(error).__name__, error)
            tries += 1
        look()


def _reason(error: BaseException) -> str:
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        tries = error.allowed_failures + 1
        return (
            f"its worker was lost {tries} {'time' if tries == 1 else 'times'}, the last on "
            f"{error.last_worker.address}: out of memory, at the end of its walltime, or with "
            "its machine. See the log of the job"
        )
    return f"its task was lost ({type(error).__name__}: {error})"


class _Room:
    """Counts the slides that can be processed at a time, and reports long waits for workers."""

    def __init__(self, count: Callable[[int], int], notice: Callable[[str], None]) -> None:
        self._count, self._notice = count, notice
        self._served = time.monotonic()
        self._missed = False

    def slides(self, waiting: int) -> int:
        workers, now = self._count(waiting), time.monotonic()
        if workers:
            self._served = now
            if self._missed:
                self._notice(f"{counted(workers, 'worker')} can be used")
            self._missed = False
        elif not self._missed and now - self._served > _PATIENCE_SECONDS:
            self._notice(f"no workers yet: {counted(waiting, 'slide')} to do")
            self._missed = True
        return workers


@contextlib.contextmanager
def _place(
    options: WorkerOptions, jobs: JobsConfig | None, tasks: int
) -> Iterator[tuple[Any, Callable[[int], int]]]:
    """Yield a dask client, and a function of the waiting slides that counts its threads."""
    from distributed import Client

    if jobs is not None and jobs.scheduler != "local":
        from wsiad.compute.jobs import running_jobs

        with (
            running_jobs(jobs, tasks) as running,
            begun(functools.partial(Client, running.cluster), close_client) as client,
        ):
            yield client, running.watch
    elif options.scheduler is not None:
        client = _reached(options.scheduler)
        with begun(lambda: client, close_client):  # its workers are not ours to look after
            yield client, lambda _: sum(client.nthreads().values())
    else:
        from wsiad.compute.local import local_workers

        with local_workers(jobs.jobs * jobs.cores if jobs else options.workers, tasks) as place:
            yield place


def _reached(address: str) -> Any:
    """Return a client of a running scheduler."""
    from distributed import Client

    try:
        return Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no dask scheduler can be reached ({error})",
            subject=address,
            remedy="Pass the address that it printed when it started, such as tcp://10.0.0.1:8786.",
        ) from error
