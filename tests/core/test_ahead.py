"""Reading ahead in a thread: order, bound of memory, errors, and an orderly end."""

import threading
from contextlib import closing

import pytest

from wsiad.core.ahead import read_ahead, room_for


def threads():
    return [one for one in threading.enumerate() if one.name == "read-ahead"]


class Source:
    """Iterator of numbers that notes what was taken from it, and by whom."""

    def __init__(self, count, *, fails_at=None):
        self.count, self.fails_at = count, fails_at
        self.taken, self.closed = 0, False
        self.taken_two, self.by = threading.Event(), set()

    def items(self):
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise ValueError(f"no item {number}")
                self.taken = number + 1
                self.by.add(threading.current_thread())
                if self.taken == 2:
                    self.taken_two.set()
                yield number
        finally:
            self.closed = True


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_items_come_in_order_from_another_thread(limit):
    source = Source(50)
    assert list(read_ahead(source.items(), size=lambda _: 1, limit=limit)) == list(range(50))
    assert threading.current_thread() not in source.by
    assert not threads()


def test_an_iterator_without_a_close_is_read_too():
    assert list(read_ahead(iter("abc"), size=len, limit=1)) == ["a", "b", "c"]
    assert list(read_ahead(iter(()), size=len, limit=1)) == []


def test_the_next_item_is_made_while_one_is_used():
    source = Source(3)
    with closing(read_ahead(source.items(), size=lambda _: 1, limit=2)) as items:
        next(items)
        assert source.taken_two.wait(10)


@pytest.mark.parametrize(("size", "limit", "most"), [(1, 4, 4), (3, 7, 3), (100, 7, 1), (7, 7, 1)])
def test_unused_items_are_bounded(size, limit, most):
    source = Source(40)
    items = read_ahead(source.items(), size=lambda _: size, limit=limit)
    ahead = [source.taken - number for number in items]
    # While an item is used, it and those that wait have reached the limit by one item at most.
    assert max(ahead) <= most


def test_an_error_comes_after_the_items_before_it():
    source, got = Source(9, fails_at=4), []
    with pytest.raises(ValueError, match="no item 4"):
        got.extend(read_ahead(source.items(), size=lambda _: 1, limit=100))
    assert got == [0, 1, 2, 3]
    assert source.closed
    assert not threads()


@pytest.mark.parametrize("kind", [MemoryError, SystemExit])
def test_no_error_is_lost(kind):
    def items():
        yield 1
        raise kind("at the end")

    with pytest.raises(kind, match="at the end"):
        list(read_ahead(items(), size=lambda _: 1, limit=100))


def test_who_stops_early_leaves_no_thread_and_a_closed_iterator():
    source = Source(1000)

    def used():
        with closing(read_ahead(source.items(), size=lambda _: 1, limit=3)) as items:
            for number in items:
                if number == 5:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        used()
    assert source.closed
    assert source.taken < 12
    assert not threads()


def test_a_thread_that_hangs_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr("wsiad.core.ahead.PATIENCE_SECONDS", 0.01)
    gone = threading.Event()

    def items():
        yield 1
        gone.wait()
        yield 2

    with closing(read_ahead(items(), size=lambda _: 1, limit=9)) as got:
        assert next(got) == 1
    (left,) = threads()
    assert left.daemon  # it does not keep the process
    gone.set()
    left.join(10)
    assert not threads()


def test_room_is_for_three_batches_or_sixteen_mebibytes():
    assert room_for(1) == 16 * 2**20
    assert room_for(100 * 10**6) == 300 * 10**6
