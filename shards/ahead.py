"""Map a function over items in threads, some way ahead of whoever takes the results, in the items' order.

    >>> with MapAhead(decode, paths, threads=4, bound=64) as images:
    ...     for image in images:
    ...         ...

Threads pay where `work` lets go of the GIL (decoding, reading). Cheap items travel several to a task, as many as fill
`TASK_SECONDS`, since handing a task to a thread takes about as long as reading a small file.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
_HERE = threading.local()
TASK_SECONDS = 0.002  # a task should take this long; handing one over takes about 50 microseconds


@dataclass(frozen=True, slots=True)
class _Done(Generic[Out]):
    """What a task came to: the results before the first error, that error, and the seconds it took."""

    results: list[Out]
    error: BaseException | None
    seconds: float


class MapAhead(Iterator[Out], Generic[In, Out]):
    """``map(work, items)`` by threads: results come in the items' order, an exception at its place in it.

    After an exception, of `work` or of `items`, nothing more is worked on and the iterator is at its end. Dropping it
    half way is enough to end its threads (each finishes the item it is at); `close` also waits for them, and so does
    leaving the context, but for Ctrl-C: an item may wait for a server that does not answer.

    Args:
        work: called in the threads; must be safe there.
        items: taken in the caller's thread, as late as `bound` allows.
        threads: how many; 0: `work` runs in the caller's thread, when its result is asked for.
        bound: items that may be taken and not yet handed out as results, at least 1.
    """

    def __init__(self, work: Callable[[In], Out], items: Iterable[In], threads: int, bound: int) -> None:
        self._work, self._items, self._bound = work, iter(items), max(bound, 1)
        self._most = max(1, self._bound // max(1, 2 * threads))  # items in a task, at most
        self._chunk = 1
        self._taken = 0  # items taken whose results are not handed out
        self._ready: deque[Out] = deque()
        self._tasks: deque[Future[_Done[Out]]] = deque()
        self._error: BaseException | None = None  # comes after what is ready
        self._input_error: BaseException | None = None  # comes after everything that was taken
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads, "ahead") if threads else None

    def __iter__(self) -> MapAhead[In, Out]:
        return self

    def __next__(self) -> Out:
        if self._ready:
            self._taken -= 1
            return self._ready.popleft()
        return self._next() if self._pool else self._alone()

    def close(self, wait: bool = True) -> None:
        """Work on nothing more, and wait until the threads have ended."""
        self._end(wait)

    def __enter__(self) -> MapAhead[In, Out]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=kind is not KeyboardInterrupt)

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self._end(wait=False)  # any thread may be the one that collects garbage, also one of ours

    def _end(self, wait: bool) -> None:
        self._stop.set()
        pool, self._pool = self._pool, None
        self._ready.clear()
        self._tasks.clear()
        self._items = iter(())
        if pool:
            pool.shutdown(wait=wait)  # what is not begun ends at once, by `stop`

    def _next(self) -> Out:
        """The next result, after at least one task is done; raises what comes instead of it."""
        while not self._ready:
            error, self._error = self._error, None
            if error is None:
                self._fill()
                if self._tasks:
                    self._receive(self._tasks[0].result())
                    self._tasks.popleft()
                    continue
                error, self._input_error = self._input_error or StopIteration(), None
            self.close()
            raise error
        self._fill()
        return next(self)

    def _alone(self) -> Out:
        """The next result, made in this thread."""
        try:
            item = next(self._items)
            done = _run(self._work, [item], self._stop)
        except BaseException:
            self.close()
            raise
        if done.error:
            self.close()
            raise done.error
        return done.results[0]

    def _receive(self, done: _Done[Out]) -> None:
        self._ready.extend(done.results)
        self._error = done.error
        if done.results:
            self._chunk = min(self._most, max(1, int(TASK_SECONDS * len(done.results) / max(done.seconds, 1e-9))))

    def _fill(self) -> None:
        """Take items and start tasks as far as the bound allows."""
        while self._pool and self._taken + self._chunk <= self._bound and not (self._error or self._input_error):
            chunk: list[In] = []
            try:
                for item in islice(self._items, self._chunk):
                    chunk.append(item)  # noqa: PERF402 (what came before an error stays)
            except BaseException as error:
                self._input_error = error
            if not chunk:
                return
            self._taken += len(chunk)
            self._tasks.append(self._pool.submit(_run, self._work, chunk, self._stop))


def _run(work: Callable[[In], Out], items: list[In], stop: threading.Event) -> _Done[Out]:
    """A task; it holds no reference to the iterator, which so can be dropped while tasks are left."""
    results: list[Out] = []
    failed: BaseException | None = None
    began, before = time.perf_counter(), getattr(_HERE, "stop", None)
    _HERE.stop = stop
    try:
        for item in items:
            if stop.is_set():
                break
            results.append(work(item))
    except StopIteration as error:  # would pass for the end of all items
        failed = RuntimeError("StopIteration raised by the mapped function")
        failed.__cause__ = error
    except BaseException as error:
        failed = error
    finally:
        _HERE.stop = before
    return _Done(results, failed, time.perf_counter() - began)


def unwanted() -> bool:
    """Whether nobody waits any more for what this thread works on; work that takes seconds looks now and then, since
    `close`, and the end of the program, wait for it."""
    stop = getattr(_HERE, "stop", None)
    return stop is not None and stop.is_set()
