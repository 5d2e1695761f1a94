"""Workers of this machine: how they end, and what becomes of one that ends too early."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.builders import stained, write_tiff
from support.tasks import double, numbered, run
from wsiad.compute import local
from wsiad.compute.compute_options import ComputeOptions
from wsiad.compute.local import EARLY_ENDS, LocalWorkers
from wsiad.compute.local_worker import MEMORY_EXIT
from wsiad.compute.tasks import _result, run_tasks
from wsiad.core.errors import ClusterError
from wsiad.slides.slide_table import read_table
from wsiad.store.tile_store import TileStore
from wsiad.verbs.tile import TileRow

LIMIT_SECONDS = 60.0
ENDS = {signal.SIGTERM: (143, "stopped by SIGTERM"), signal.SIGINT: (130, "interrupted")}


def until(holds):
    """Wait for a condition; how long it takes is the machine's business."""
    limit = time.monotonic() + LIMIT_SECONDS
    while not (found := holds()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)
    return found


def group(leader):
    """Command lines of the living processes of a group, by number."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == leader and state not in "ZX":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def workers(leader):
    return [number for number, line in group(leader).items() if b"local_worker" in line]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A folder of slides that are not done before a signal comes."""
    folder = tmp_path_factory.mktemp("slides")
    image = stained(1200, 1200, seed=0, glass=16)
    first = write_tiff(folder / "s00.tif", image, mpp=0.5, levels=2, compression="deflate")
    for at in range(1, 30):
        shutil.copyfile(first, folder / f"s{at:02}.tif")  # links to one file are one slide
    return folder


@pytest.fixture
def tiling(slides, tmp_path):
    """A run with two workers, and its output."""
    out = tmp_path / "store"
    options = ["--mpp", "0.5", "--tile", "32", "--stain-method", "none", "--quiet"]
    command = [sys.executable, "-m", "wsiad.cli", "tile", slides, *options]
    with subprocess.Popen(
        [*command, "--workers", "2", "--out", out],
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        yield running, out
        for number in group(running.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def starting(pid, out):
    return workers(pid)


def working(pid, out):
    return list(out.glob("slides.zarr/.s*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when", "send"),
    [
        (signal.SIGINT, starting, os.killpg),
        (signal.SIGINT, working, os.killpg),
        (signal.SIGTERM, starting, os.killpg),
        (signal.SIGTERM, working, os.killpg),
        (signal.SIGTERM, working, os.kill),
    ],
)
def test_an_ended_run_says_one_line_and_leaves_nothing(tiling, number, when, send):
    """A terminal sends SIGINT to the whole group, a batch system SIGTERM to either."""
    running, out = tiling
    until(lambda: when(running.pid, out))
    send(running.pid, number)
    _, err = running.communicate(timeout=LIMIT_SECONDS)
    code, said = ENDS[number]
    assert err == (
        f"wsiad tile: {said}; finished work is kept. Run the same command again to continue.\n"
    )
    assert running.returncode == code
    until(lambda: not group(running.pid))
    assert [path.name for path in out.rglob(".*")] == []
    rows = read_table(out / "slides.csv", TileRow) if (out / "slides.csv").exists() else []
    assert {row.slide for row in rows} <= set(TileStore(out).names())
    assert {row.status for row in rows} <= {"ok"}


def test_workers_end_with_a_run_that_is_killed(tiling):
    running, _ = tiling
    until(lambda: workers(running.pid))
    running.kill()
    until(lambda: not workers(running.pid))


def test_workers_end_when_nobody_wants_more_results():
    results = run_tasks(
        lambda item: os.getpid(),
        [1, 2, 3, 4],
        options=ComputeOptions(workers=2),
        failed=lambda item, reason: reason,
    )
    process = next(results)
    os.kill(process, 0)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_script_need_not_guard_itself_against_its_own_workers(tmp_path):
    """Processes that ``multiprocessing`` spawns run the script once more, dask's nannies too."""
    script = tmp_path / "script.py"
    script.write_text(
        "from wsiad.compute.compute_options import ComputeOptions\n"
        "from wsiad.compute.tasks import run_tasks\n"
        "options = ComputeOptions(workers=2)\n"
        "print(sorted(run_tasks(abs, [-1, -2, -3], options=options, failed=print)))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "[1, 2, 3]\n"), done.stderr


def test_a_worker_is_deaf_to_sigint():
    def interrupted(item):
        os.kill(os.getpid(), signal.SIGINT)
        return item

    assert sorted(run(interrupted, [1, 2, 3], workers=2)) == [1, 2, 3]


def kill_at_start(monkeypatch, doomed):
    """Kill workers as soon as they are started, those of which the number is doomed."""
    start, started = LocalWorkers._start, []

    def killing(self, slot):
        process, name = start(self, slot)
        started.append(name)
        if doomed(len(started)):
            process.kill()
        return process, name

    monkeypatch.setattr(LocalWorkers, "_start", killing)
    return started


@pytest.mark.parametrize("doomed", [{1}, {1, 2, 3}])
def test_a_worker_killed_while_it_starts_is_replaced(monkeypatch, caplog, doomed):
    started = kill_at_start(monkeypatch, lambda number: number in doomed)
    assert sorted(run(double, [1, 2, 3], workers=2)) == [2, 4, 6]
    assert len(started) > max(doomed)
    assert "a worker exited while it was starting, killed by SIGKILL; another" in caplog.text


def test_a_run_goes_on_with_the_workers_that_do_start(monkeypatch):
    kill_at_start(monkeypatch, lambda number: number > 1)
    assert sorted(run(double, [1, 2, 3], workers=2)) == [2, 4, 6]


def test_workers_that_never_start_end_the_run(monkeypatch):
    started = kill_at_start(monkeypatch, lambda number: True)
    with pytest.raises(ClusterError, match=r"workers in a row .* SIGKILL.* fewer --workers"):
        run(double, [1, 2, 3], workers=2)
    assert len(started) == 2 * EARLY_ENDS


def test_a_lost_worker_is_told_of(tmp_path, caplog):
    def work(item):
        try:
            (tmp_path / "tried").touch(exist_ok=False)
        except FileExistsError:
            return item
        return os.kill(os.getpid(), signal.SIGKILL)

    assert sorted(run(work, [1, 2, 3], workers=2)) == [1, 2, 3]
    assert "a worker was lost: killed by SIGKILL; another worker replaces it" in caplog.text


def test_a_worker_that_takes_more_memory_than_its_share_is_ended(monkeypatch, caplog):
    monkeypatch.setattr(local, "parse_memory_limit", lambda *args, **values: 500 * 2**20)

    def greedy(item):
        kept = b"x" * (500 * 2**20 * (item == 2))
        while kept:
            time.sleep(0.1)
        return item

    *good, bad = sorted(run(greedy, [1, 2, 3], workers=2, retries=0), key=lambda one: str(one)[1:])
    assert sorted(good) == [1, 3]
    assert bad.startswith("2 failed: its worker was lost 1 time")
    assert "a worker was lost: at its share of the memory" in caplog.text


def test_workers_are_numbered():
    found = run(numbered, [1, 2, 3], workers=2)
    assert set(found) <= {0, 1}
    assert numbered(1) is None


# What keeps the workers, with processes that do nothing but end


@pytest.fixture
def kept(monkeypatch):
    """Places of workers, processes with given ends, and the scheduler's books."""
    books = SimpleNamespace(workers={}, address="tcp://127.0.0.1:9")
    arrivals = SimpleNamespace(names=set())
    codes, started, slots = [], [], []

    def start(self, slot):
        slots.append(slot)
        started.append(f"local-{len(started) + 1}")
        end = f"sys.exit({codes.pop(0)})" if codes else "time.sleep(60)"
        line = [sys.executable, "-c", f"import sys, time; {end}"]
        return subprocess.Popen(line, stdin=subprocess.PIPE), started[-1]

    monkeypatch.setattr(LocalWorkers, "_start", start)
    keeper = LocalWorkers(SimpleNamespace(scheduler=books), arrivals, most=2, tasks=2, folder="")

    def come(name):
        arrivals.names.add(name)
        books.workers[name] = SimpleNamespace(
            name=name, nthreads=1, status=SimpleNamespace(name="running")
        )

    yield SimpleNamespace(
        keeper=keeper,
        codes=codes,
        started=started,
        slots=slots,
        come=come,
        gone=books.workers.pop,
    )
    keeper.close()


def test_there_are_as_many_workers_as_slides_that_wait(kept):
    assert kept.keeper.watch(1) == 0
    assert len(kept.started) == 1
    kept.come("local-1")
    assert kept.keeper.watch(5) == 1
    assert len(kept.started) == 2
    kept.come("local-2")
    assert kept.keeper.watch(5) == 2
    assert kept.slots == [0, 1]


def test_a_worker_that_came_is_replaced_however_often(kept, caplog):
    kept.codes += [MEMORY_EXIT] * 5
    kept.keeper.watch(1)
    for number in range(1, 6):
        kept.come(f"local-{number}")
        until(lambda: kept.keeper.watch(1) >= 0 and len(kept.started) > number)  # noqa: B023
        kept.gone(f"local-{number}")
    assert caplog.text.count("a worker was lost: at its share of the memory") == 5
    assert kept.slots == [0] * 6  # and takes its number


def test_the_others_go_on_without_a_place_where_none_starts(kept, caplog):
    caplog.set_level(logging.WARNING)
    kept.keeper.watch(1)
    kept.come("local-1")
    kept.codes += [7] * EARLY_ENDS
    until(lambda: kept.keeper.watch(2) and "no other worker replaces it" in caplog.text)
    assert kept.keeper.watch(2) == 1
    assert len(kept.started) == 1 + EARLY_ENDS
    assert "with exit code 7" in caplog.text


def test_a_worker_that_the_scheduler_has_struck_off_is_replaced(kept, monkeypatch):
    monkeypatch.setattr(local, "GONE_SECONDS", 0.05)
    kept.keeper.watch(1)
    kept.come("local-1")
    kept.keeper.watch(1)
    kept.gone("local-1")
    until(lambda: kept.keeper.watch(1) >= 0 and len(kept.started) == 2)


def test_workers_are_looked_after_while_a_lost_result_is_made_again():
    """Nobody else would start the worker that makes it."""
    looks = []

    class Future:
        status = "pending"

        def result(self, timeout):
            if len(looks) < 3:
                raise TimeoutError
            return timeout

    assert _result(Future(), lambda: looks.append(1)) > 0
    assert len(looks) == 3


def test_a_tasks_own_timeout_is_its_result():
    class Future:
        status = "error"

        def result(self, timeout):
            raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        _result(Future(), lambda: pytest.fail("looked"))


# What dask loses, and no worker


def cancelled_as_dask_does(monkeypatch, times):
    """Let the coroutine that fetches a result be cancelled: dask's ``sync`` then has none."""
    from distributed import Future

    fetch, cancelled = Future._result, []

    async def sometimes(self, raiseit=True):
        await self._state.wait()
        if len(cancelled) < times:
            cancelled.append(self.key)
            raise asyncio.CancelledError
        return await fetch(self, raiseit)

    monkeypatch.setattr(Future, "_result", sometimes)
    return cancelled


def counted(folder):
    def work(item):
        (folder / f"{item}-{time.monotonic_ns()}").touch()
        return 2 * item

    return work


def test_a_fetch_that_dask_cancels_is_no_loss(tmp_path, monkeypatch):
    cancelled = cancelled_as_dask_does(monkeypatch, 3)
    assert sorted(run(counted(tmp_path), [1, 2, 3], workers=2)) == [2, 4, 6]
    assert len(cancelled) == 3
    assert len(list(tmp_path.iterdir())) == 3  # each was done once


def test_a_task_that_dask_cancels_is_tried_again(tmp_path, monkeypatch):
    from distributed import Client

    submit, lost = Client.submit, []

    def submitted(self, *args, **values):
        future = submit(self, *args, **values)
        if len(lost) < 2:
            lost.append(future.key)
            self.cancel([future])
        return future

    monkeypatch.setattr(Client, "submit", submitted)
    assert sorted(run(counted(tmp_path), [1, 2, 3], workers=2)) == [2, 4, 6]
    assert len(lost) == 2


def test_what_is_lost_for_good_ends_once_and_alone(monkeypatch):
    from distributed import Client

    submit, tried = Client.submit, []

    def submitted(self, function, item, **values):
        future = submit(self, function, item, **values)
        if item == 2:
            tried.append(item)
            self.cancel([future])
        return future

    monkeypatch.setattr(Client, "submit", submitted)
    *good, bad = sorted(run(double, [1, 2, 3], workers=2), key=lambda one: str(one)[1:])
    assert sorted(good) == [2, 6]
    assert bad.startswith("2 failed: its task was lost (")
    assert len(tried) == 5


def test_a_scheduler_that_is_lost_is_no_slides_fault(monkeypatch):
    from distributed import Client

    submit = Client.submit

    def submitted(self, *args, **values):
        future = submit(self, *args, **values)
        self.close(timeout=5)
        return future

    monkeypatch.setattr(Client, "submit", submitted)
    with pytest.raises(ClusterError, match="the connection to it was lost"):
        run(double, [1, 2, 3], workers=2)


@pytest.mark.parametrize("made", [True, False])
def test_a_loss_is_believed_only_after_a_look_at_what_was_made(tmp_path, made):
    """A worker may be lost when it has just finished its slide."""
    options = ComputeOptions(workers=2, retries=0)

    def work(item):
        if item == 2:
            if made:
                (tmp_path / "2").touch()
            os._exit(1)
        return item

    found = run_tasks(
        work,
        [1, 2, 3],
        options=options,
        failed=lambda item, reason: f"{item} failed",
        whole=lambda item: f"{item} is there" if (tmp_path / str(item)).exists() else None,
    )
    assert {str(one) for one in found} == {"1", "3", "2 is there" if made else "2 failed"}
