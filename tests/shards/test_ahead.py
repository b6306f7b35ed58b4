"""Mapping ahead in threads: the order, the bound, errors at their place, and no thread left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.ahead import MapAhead


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def gone() -> bool:
    """Whether our threads end within five seconds."""
    until = time.monotonic() + 5
    while ours() and time.monotonic() < until:
        time.sleep(0.005)
    return not ours()


def squared(item: int) -> int:
    """Slower for some items than for others, so that threads overtake each other."""
    time.sleep(0.0004 * (item % 3))
    return item * item


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60), st.integers(0, 4), st.integers(1, 20))
def test_results_are_those_of_map_and_no_more_is_taken_than_the_bound(count: int, threads: int, bound: int) -> None:
    taken, handed, most = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal taken, most
        for item in range(count):
            taken += 1
            most = max(most, taken - handed)
            yield item

    found = []
    for result in MapAhead(squared, items(), threads, bound):
        found.append(result)
        handed += 1
    assert found == [item * item for item in range(count)]
    assert most <= bound
    assert not ours()


def test_threads_work_at_the_same_time_and_ahead_of_the_caller() -> None:
    meeting = threading.Barrier(3)
    with MapAhead(lambda _: meeting.wait(5), range(6), threads=3, bound=6) as found:
        assert len(list(found)) == 6
    done: list[int] = []
    with MapAhead(done.append, range(100), threads=2, bound=8) as found:
        next(found)
        until = time.monotonic() + 5
        while len(done) < 8 and time.monotonic() < until:
            time.sleep(0.002)
        assert 8 <= len(done) <= 9


def test_without_threads_the_caller_does_the_work_when_asked() -> None:
    done: list[int] = []
    found = MapAhead(lambda item: done.append(item) or threading.current_thread(), range(5), threads=0, bound=5)
    assert next(found) is threading.current_thread()
    assert done == [0]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_ctrl_c_waits_for_no_thread(kind: type[BaseException]) -> None:
    """An item may take minutes, where a server does not answer; any other way out waits."""
    go = threading.Event()

    def leaves() -> None:
        with MapAhead(lambda item: item and go.wait(60), range(9), threads=2, bound=4) as found:
            next(found)
            if kind is ValueError:
                threading.Timer(0.1, go.set).start()
            raise kind

    with pytest.raises(kind):
        leaves()
    assert go.is_set() == (kind is ValueError)
    go.set()
    assert gone()


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("source", ["work", "items"])
@pytest.mark.parametrize("at", [0, 7, 39])
def test_an_error_comes_at_its_place_and_ends_all(threads: int, source: str, at: int) -> None:
    worked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            if source == "items" and item == at:
                raise KeyError(item)
            yield item

    def work(item: int) -> int:
        worked.append(item)
        if source == "work" and item == at:
            raise KeyError(item)
        return squared(item)

    found = MapAhead(work, items(), threads, bound=10)
    assert [next(found) for _ in range(at)] == [item * item for item in range(at)]
    with pytest.raises(KeyError, match=str(at)):
        next(found)
    assert gone()
    assert max(worked, default=0) <= at + 10
    assert list(found) == []


def test_items_that_would_go_on_after_an_error_do_not() -> None:
    class Bumpy:
        def __init__(self) -> None:
            self.at = -1

        def __iter__(self) -> Bumpy:
            return self

        def __next__(self) -> int:
            self.at += 1
            if self.at == 7:
                raise KeyError(7)
            return self.at

    found = MapAhead(squared, Bumpy(), threads=2, bound=20)
    assert [next(found) for _ in range(7)] == [item * item for item in range(7)]
    with pytest.raises(KeyError, match="7"):
        next(found)
    assert list(found) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_stop_iteration_of_the_function_is_no_silent_end(threads: int) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(MapAhead(lambda item: next(iter([])), range(5), threads, bound=5))


def test_closing_cancels_what_is_not_begun_and_leaves_no_thread() -> None:
    found = MapAhead(lambda _: time.sleep(0.05), range(1000), threads=2, bound=200)
    next(found)
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 1  # 200 items would take 5 s
    assert not ours()
    assert list(found) == []
    found.close()


def test_closing_stops_within_a_task_of_many_items() -> None:
    found = MapAhead(lambda item: item < 3000 or time.sleep(0.1), range(100_000), threads=1, bound=4000)
    for _ in range(2000):
        next(found)
    assert found._chunk > 20
    time.sleep(0.2)  # the thread is at an item beyond 3000 now, many more in the same task
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 1


def test_a_dropped_iterator_ends_its_threads() -> None:
    found = MapAhead(squared, range(1000), threads=3, bound=50)
    next(found)
    assert ours()
    del found
    assert gone()


def test_garbage_collected_in_one_of_its_own_threads() -> None:
    """The thread that happens to collect the iterator must not wait for itself."""
    collect = threading.Event()
    errors: list[object] = []

    def work(item: int) -> int:
        if collect.is_set():
            gc.collect()
        return item

    before, sys.unraisablehook = sys.unraisablehook, lambda error: errors.append(error.exc_value)
    try:
        found = MapAhead(work, range(10_000), threads=2, bound=100)
        next(found)
        cycle: list[object] = [found]
        cycle.append(cycle)
        gc.disable()
        collect.set()
        del found, cycle
        assert gone()
    finally:
        gc.enable()
        sys.unraisablehook = before
    assert not errors


def test_cheap_items_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = 0
    submit = ThreadPoolExecutor.submit

    def counted(pool, *args):
        nonlocal tasks
        tasks += 1
        return submit(pool, *args)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", counted)
    assert sum(MapAhead(lambda item: item, range(5000), threads=2, bound=200)) == 4999 * 2500
    assert tasks < 1000
    tasks = 0
    list(MapAhead(lambda _: time.sleep(0.004), range(60), threads=2, bound=40))
    assert tasks == 60  # slow ones do not: the threads share them evenly


def test_the_interpreter_can_end_in_the_middle() -> None:
    code = """
import time
from shards.ahead import MapAhead
found = MapAhead(lambda item: time.sleep(0.02) or item, range(1000), threads=2, bound=10)
print(next(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
