"""A lock between processes: exclusive, and never left for ever."""

import collections
import multiprocessing
import threading
import time
from types import SimpleNamespace

import pytest

from wsiad.core.errors import InputError, RunError
from wsiad.core.ownership import CLAIM, claimed, holds_other, is_alive, locked, refuse_foreign


def add(folder, times):
    for _ in range(times):
        with locked(folder / ".lock"):
            number = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(number + 1))


def test_what_is_done_under_it_is_done_one_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add, args=(tmp_path, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert (tmp_path / "count").read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


@pytest.fixture
def clock(monkeypatch):
    """The time of locks: it goes on when a test says so, however slow the machine is."""
    looks = collections.Counter()

    def monotonic():
        looks[threading.get_ident()] += 1
        return clock.now

    def looked_twice(threads):
        """Wait until each thread has looked at the clock and the lock since this call."""
        looks.clear()
        limit = time.monotonic() + 60
        while any(thread.is_alive() and looks[thread.ident] < 2 for thread in threads):
            assert time.monotonic() < limit
            time.sleep(0.001)

    clock = SimpleNamespace(
        now=0.0, monotonic=monotonic, sleep=time.sleep, looked_twice=looked_twice
    )
    monkeypatch.setattr("wsiad.core.ownership.time", clock)
    return clock


def test_a_dead_owner_is_replaced_by_one_of_those_who_wait(tmp_path, clock):
    lock = tmp_path / "new" / ".lock"
    lock.parent.mkdir()
    lock.write_text("of a process that died")
    inside, most = [], []

    def work():
        with locked(lock, stale_seconds=1.5):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    clock.looked_twice(threads)
    clock.now = 1.4
    clock.looked_twice(threads)
    assert most == []
    clock.now = 1.6
    for thread in threads:
        thread.join(60)
    assert most == [1, 1, 1, 1]
    assert list(lock.parent.iterdir()) == []


def test_a_living_owner_is_waited_for_however_long_the_queue(tmp_path, clock):
    """Each holds it for less than the limit; together they take longer."""
    order = []

    def work():
        with locked(tmp_path / ".lock", stale_seconds=2.5):
            order.append("in")
            others = [thread for thread in threads if thread is not threading.current_thread()]
            clock.looked_twice(others)
            clock.now += 2.4
            clock.looked_twice(others)
            order.append("out")

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order == ["in", "out"] * 5


def test_an_error_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def hold(folder, other_end):
    with claimed(folder):
        other_end.send("ready")
        other_end.poll(60)


@pytest.fixture
def holder(tmp_path):
    """A process that has claimed a folder."""
    context = multiprocessing.get_context("spawn")
    # No Event: to set one for which a killed process was waiting would wait for it for ever.
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "f", theirs))
    process.start()
    theirs.close()
    assert ours.poll(60)
    assert ours.recv() == "ready"
    process.go_on = ours.close
    yield process
    ours.close()
    process.join(60)


def test_a_folder_that_is_worked_on_is_refused_to_others(holder, tmp_path):
    with pytest.raises(InputError, match=r"f: another process works on it\. Wait"):
        claimed(tmp_path / "f").__enter__()
    holder.go_on()
    holder.join(60)
    assert holder.exitcode == 0
    with claimed(tmp_path / "f"):
        assert [path.name for path in (tmp_path / "f").iterdir()] == [CLAIM]
    assert not list((tmp_path / "f").iterdir())


def test_the_folder_of_a_killed_process_is_free_at_once(holder, tmp_path, monkeypatch):
    holder.kill()
    holder.join(60)
    assert (tmp_path / "f" / CLAIM).exists()

    def waits(seconds):
        raise AssertionError(f"waits for {seconds} s")

    monkeypatch.setattr("wsiad.core.ownership.time", SimpleNamespace(sleep=waits))
    with claimed(tmp_path / "f"):
        assert (tmp_path / "f" / CLAIM).exists()


def test_the_owner_on_another_machine_is_told_by_its_beats(tmp_path, monkeypatch):
    """Neither of the two can see processes of the other."""
    with claimed(tmp_path, beat_seconds=0.1):
        monkeypatch.setattr("wsiad.core.ownership._machine", lambda: "0" * 8)
        with pytest.raises(InputError, match="another process works on it"):
            claimed(tmp_path, beat_seconds=0.1).__enter__()
    (tmp_path / CLAIM).write_text("ffffffff-1-2-00000000")
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        assert len(waited) < 100

    monkeypatch.setattr(
        "wsiad.core.ownership.time",
        SimpleNamespace(sleep=sleep, monotonic=lambda: sum(waited)),
    )
    with claimed(tmp_path, beat_seconds=0.1):
        assert sum(waited) >= 0.4 - 1e-9
        assert (tmp_path / CLAIM).read_text().startswith("0" * 8)
    assert not list(tmp_path.iterdir())


def test_it_gives_up_at_last(tmp_path, monkeypatch):
    monkeypatch.setattr("wsiad.core.ownership._GIVE_UP_SECONDS", 0.2)
    (tmp_path / ".lock").write_text("someone")
    monkeypatch.setattr("wsiad.core.ownership._break", lambda path, owner: None)
    with (
        pytest.raises(InputError, match="is kept busy by other processes"),
        locked(tmp_path / ".lock", stale_seconds=0.1),
    ):
        pass


def test_a_lock_that_names_nobody_is_taken_over(tmp_path):
    """A process was killed, or a machine lost power, between making it and saying whose it is."""
    (tmp_path / ".lock").touch()
    with locked(tmp_path / ".lock", stale_seconds=0.1):
        assert is_alive((tmp_path / ".lock").read_text())
    (tmp_path / CLAIM).touch()
    with claimed(tmp_path, beat_seconds=0.02):
        assert is_alive((tmp_path / CLAIM).read_text())
    assert not list(tmp_path.iterdir())


def refused(folder):
    refuse_foreign(folder, RunError, what="a search", marks=["config.yaml"])


def test_a_folder_that_is_new_empty_claimed_or_of_the_kind_may_be_written_in(tmp_path):
    refused(tmp_path / "new")
    refused(tmp_path)
    (tmp_path / CLAIM).touch()
    refused(tmp_path)
    (tmp_path / "other.txt").touch()
    (tmp_path / "config.yaml").touch()
    refused(tmp_path)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "other.txt").touch()
    with pytest.raises(RunError, match=f"{tmp_path}: holds something that is not a search"):
        refused(tmp_path)


def test_what_is_hidden_counts_for_nothing_in_a_folder(tmp_path):
    (tmp_path / ".0a1b2c3d-7-1-0a1b2c3d.partial").touch()  # half written by one that was killed
    assert not holds_other(tmp_path)
    refused(tmp_path)
    (tmp_path / "other.txt").touch()
    assert holds_other(tmp_path)


def test_a_folder_that_another_process_is_making_is_not_taken_for_something_else(tmp_path):
    def other():
        return holds_other(tmp_path, marks=["groups/root.json"], begun=["groups"])

    (tmp_path / "groups").mkdir()
    assert not other()
    (tmp_path / "groups" / "thesis.docx").touch()
    assert other()
    (tmp_path / "groups" / "root.json").touch()
    assert not other()


def test_a_mark_counts_where_it_belongs(tmp_path):
    (tmp_path / "root.json").touch()
    assert holds_other(tmp_path, marks=["groups/root.json"], begun=["groups"])
