"""The feed of a run: batches of a stream, made ahead of the loop by threads or by processes.

Which of the two (`data.loader`) is a question of speed alone: samples are pure functions of their positions, and
batches come in the same order with the same bytes either way, whatever the number of workers. Threads share what they
read and hand batches over for nothing, and hold each other up (and the loop) wherever Python code holds the GIL;
processes do neither. "auto" tries the run's first samples in threads at its start, and takes threads where `workers`
of them are `WORTH` as fast as as many processes could be at best, which is `workers` times as fast as one.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Literal, Protocol

import cv2
import torch
from torch.utils.data import DataLoader, Sampler

from shards.ahead import MapAhead
from shards.errors import SegshardsError, SettingsError, UserError
from shards.loader import ANNOUNCED, cores
from train.batch import Batch, Item, collate
from train.config import Recipe
from train.distributed import World
from train.stream import Failure, Positioned

GRACE_SECONDS = 60  # what a data worker that was told to end gets for it
WORTH = 0.8
TRIED = 0.15  # seconds that one thread may take, about, for the samples that "auto" tries
Kind = Literal["threads", "processes"]
Sent = tuple[Batch, torch.cuda.Event | None]


class Lists(Protocol):
    """Lists of positions, one a batch, gone through as often as asked."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[int]]: ...


class DataWorkerError(UserError):
    """A data worker process has ended before its time."""


@dataclass(frozen=True)
class Choice:
    """Who makes the batches.

    Args:
        loader: "threads" or "processes".
        workers: how many; 0: the loop itself.
        speedup: how many times as fast as one thread `workers` threads were, where that was tried.
    """

    loader: Kind
    workers: int
    speedup: float | None = None

    def __str__(self) -> str:
        if not self.workers:
            return "data: made by the loop itself (data.workers = 0)"
        tried = "" if self.speedup is None else f" (threads: {self.speedup:.1f} times as fast as one)"
        return f"data: {self.workers} {self.loader}{tried}"


class Positions(Sampler[list[int]]):
    """The positions of this rank's micro-batches, from step `start` on: `accumulate` lists a step.

    Raises:
        SettingsError: the global batch does not divide by ranks and accumulation.
    """

    def __init__(self, recipe: Recipe, world: World, start: int = 0) -> None:
        loop = recipe.loop
        self.batch, self.parts, self.rank, self.start = loop.batch, loop.accumulate, world.rank, start
        self.steps = loop.steps
        if loop.batch % (world.size * loop.accumulate):
            raise SettingsError(
                f"loop.batch = {loop.batch}: expected a multiple of {world.size} processes x "
                f"{loop.accumulate} (loop.accumulate)"
            )
        self.size = loop.batch // (world.size * loop.accumulate)

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            first = step * self.batch + self.rank * self.size * self.parts
            for part in range(self.parts):
                yield list(range(first + part * self.size, first + (part + 1) * self.size))


class Feed:
    """The batches of a run on its device; an error met in making one is raised in its place.

    Args:
        source: yields batches and, on a CUDA device, what to wait for before one is used.
        choice: who makes them.
    """

    def __init__(self, source: Iterator[Sent], choice: Choice) -> None:
        self._source, self.choice = source, choice

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        return taken(next(self._source))


class Timed:
    """The batches of a feed, with a clock on how long the loop waited for them."""

    def __init__(self, source: Feed) -> None:
        self.source, self.waited, self.began = source, 0.0, time.perf_counter()
        self.last: Batch | None = None

    def next(self) -> Batch:
        """The next batch; an error of a data worker is raised here."""
        before = time.perf_counter()
        batch = next(self.source)
        self.waited += time.perf_counter() - before
        return batch

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap, and how many of them were waiting."""
        now = time.perf_counter()
        seconds, waited = now - self.began, self.waited
        self.began, self.waited = now, 0.0
        return seconds, waited


@contextmanager
def batches(
    stream: Positioned, world: World, start: int = 0, positions: Sequence[list[int]] | None = None
) -> Iterator[Feed]:
    """This rank's micro-batches from step `start` to the recipe's last, or those of the given positions; data workers
    end with the context.

    Raises:
        SettingsError: the global batch does not divide by ranks and accumulation.
    """
    sampler = Positions(stream.recipe, world, start) if positions is None else positions
    choice = choose(stream, sampler)
    make = _by_processes if choice.loader == "processes" and choice.workers else _by_threads
    with make(stream, sampler, choice.workers, world.device) as source:
        yield Feed(source, choice)


# --- who makes them ----------------------------------------------------------------------------------------------


def choose(stream: Positioned, sampler: Iterable[list[int]]) -> Choice:
    """Threads or processes, as the recipe asks or as a trial on the first samples advises."""
    data = stream.recipe.data
    workers = min(data.workers, cores())
    if data.loader != "auto" or not workers:
        return Choice("threads" if data.loader == "auto" else data.loader, workers)
    threads = max(2, workers)  # one thread alone holds up nobody but the loop: two show by how much
    found = speedup(stream, list(itertools.islice(itertools.chain.from_iterable(sampler), 4 * threads)), threads)
    return Choice("threads" if found >= WORTH * threads else "processes", workers, round(found, 2))


def speedup(stream: Positioned, positions: Sequence[int], threads: int) -> float:
    """How many times as fast as one thread several are with the samples at some positions: the best of three tries each
    (0 where there is nothing to try, or a sample fails)."""

    def seconds(count: int, of: Sequence[int]) -> float:
        began = time.perf_counter()
        for _ in MapAhead(stream.item, of, count, bound=len(of)):
            pass
        return time.perf_counter() - began

    if not positions:
        return 0.0
    try:
        seconds(1, positions[:1])  # what happens once: kernels are compiled, files opened
        each = seconds(1, positions[:1])
        some = positions[: max(2 * threads, min(len(positions), int(TRIED / max(each, 1e-9))))]
        tries = [(seconds(threads, some), seconds(1, some)) for _ in range(3)]
    except SegshardsError:  # the loop meets it at its place
        return 0.0
    return min(one for _, one in tries) / max(min(many for many, _ in tries), 1e-9)


# --- how they are made -------------------------------------------------------------------------------------------


@contextmanager
def _by_threads(
    stream: Positioned, sampler: Lists, workers: int, device: torch.device
) -> Iterator[MapAhead[int, Sent]]:
    """Threads make samples, one more makes batches of them, both some way ahead of the loop; without workers the loop
    makes all."""
    if workers:
        cv2.setNumThreads(0)  # these threads are its threads
    sender, first = Sender(device), len(next(iter(sampler), []))
    positions = itertools.chain.from_iterable(_Announced(stream, sampler))
    with MapAhead(stream.item, positions, workers, bound=first + 2 * workers) as items:

        def join(size: int) -> Sent:
            return sender.send(collate(list(itertools.islice(items, size))))

        with MapAhead(join, map(len, sampler), min(workers, 1), bound=2) as made:
            yield made


@contextmanager
def _by_processes(
    stream: Positioned, sampler: Lists, workers: int, device: torch.device
) -> Iterator[MapAhead[int, Sent]]:
    """Processes make batches; on a CUDA device a thread takes them there ahead of the loop."""
    leaving = multiprocessing.RawValue("b", 0)
    loader = DataLoader(
        stream,
        batch_sampler=_Announced(stream, sampler),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=partial(_start_worker, leaving),
        generator=torch.Generator(),  # its own, so that the loader draws nothing from the run's randomness
        prefetch_factor=4,
    )
    sender = Sender(device)
    source = _Processes(loader)
    del loader
    with _unalarmed():
        try:
            threads = 1 if device.type == "cuda" else 0
            with MapAhead(lambda _: sender.send(source.next()), range(len(sampler)), threads, bound=2) as made:
                yield made
        finally:
            leaving.value = 1
            source.close()


class Sender:
    """Takes batches to a device; to CUDA from page-locked memory, on a stream of its own, while the loop computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Batch) -> Sent:
        """The batch on its way to the device, and the event of its arrival."""
        if self.stream is None:
            return batch, None
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            return batch.pin_memory().to(self.device), self.stream.record_event()


def taken(sent: Sent) -> Batch:
    """A batch that a `Sender` sent: whatever the current stream does next waits until it is there."""
    batch, arrived = sent
    if arrived is not None:
        current = torch.cuda.current_stream(batch.images.device)
        current.wait_event(arrived)
        for value in vars(batch).values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)  # its memory is not given away before that work is done
    return batch


class _Processes:
    """The batches of a DataLoader, and an error for people where one of its processes is gone: found before a batch is
    waited for, and within five seconds of waiting, as torch looks that often."""

    def __init__(self, loader: DataLoader[Item | Failure]) -> None:
        before = set(multiprocessing.active_children())
        self._source: Iterator[Batch | Failure] | None = iter(loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in before]

    def next(self) -> Batch:
        """The next batch; raises what its worker met, DataWorkerError where one is gone."""
        assert self._source is not None
        problem = self._gone("")
        try:
            if problem is None:
                batch = next(self._source)
                if not isinstance(batch, Failure):
                    return batch
                problem = batch.error
        except (RuntimeError, OSError, EOFError) as error:
            if not isinstance(error, RuntimeError):  # a connection that broke: its process is about to be gone
                ended = wait([worker.sentinel for worker in self._workers], timeout=GRACE_SECONDS)
                for worker in (worker for worker in self._workers if worker.sentinel in ended):
                    worker.join(GRACE_SECONDS)
            problem = self._gone(str(error))
            if problem is None:
                raise
        raise problem  # outside of `except`, whose traceback would keep the other workers alive

    def _gone(self, said: str) -> SegshardsError | None:
        """What there is to say of a worker that has ended."""
        gone = [worker for worker in self._workers if worker.exitcode is not None]
        return _died(gone[0].pid, gone[0].exitcode or 0, len(self._workers), said) if gone else None

    def close(self) -> None:
        """Let go of the DataLoader, whatever else (a traceback, say) holds this object: its workers end now."""
        self._source = None


def _died(pid: int | None, code: int, workers: int, said: str) -> DataWorkerError:
    """What is said of a worker that has ended with an exit code, negative for a signal."""
    if code == -signal.SIGKILL:
        how = "was killed, as a rule by the system for lack of memory"
        remedy = f"lower data.workers (now {workers}), augment.crop or loop.batch"
    else:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        remedy = 'look above for what it said, or use data.loader = "threads"'
    if "shared memory" in said or "bus error" in said.lower():
        how, remedy = "found no shared memory", 'make /dev/shm larger, or use data.loader = "threads"'
    return DataWorkerError(f"data worker process {pid} {how}; {remedy}, and go on with --resume")


@contextmanager
def _unalarmed() -> Iterator[None]:
    """Inside, the end of a child process interrupts nothing: torch's DataLoader would raise in the middle of whatever
    the loop does (half way through an optimiser's step, say); `_Processes` finds it where the loop waits for data."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


class _Announced(Sampler[list[int]]):
    """Lists of positions as they are; the stream hears of them before their samples are made."""

    def __init__(self, stream: Positioned, lists: Lists) -> None:
        self.stream, self.lists = stream, lists

    def __len__(self) -> int:
        return len(self.lists)

    def __iter__(self) -> Iterator[list[int]]:
        lists = iter(self.lists)
        now, later = self._block(lists), self._block(lists)
        while now:
            self.stream.ahead([position for block in (now, later) for some in block for position in some])
            yield from now
            now, later = later, self._block(lists)

    def _block(self, lists: Iterator[list[int]]) -> list[list[int]]:
        """The next lists, of as many positions as lie near each other in the shards."""
        block: list[list[int]] = []
        wanted = min(self.stream.reach, ANNOUNCED)
        while wanted > 0 and (some := next(lists, None)) is not None:
            block.append(some)
            wanted -= len(some)
        return block


def _collate(items: Sequence[Item | Failure]) -> Batch | Failure:
    good = []
    for item in items:
        if isinstance(item, Failure):
            return item
        good.append(item)
    try:
        return collate(good)
    except SegshardsError as error:
        return Failure(error)


def _start_worker(leaving: Any, worker: int) -> None:
    """One thread a worker. A signal to all processes of a run is the loop's to answer: it finishes its step, with data
    if need be, and ends its workers then."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    def end(number: int, frame: FrameType | None) -> None:
        if leaving.value:
            os._exit(0)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
