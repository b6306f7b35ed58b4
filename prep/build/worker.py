"""Worker processes: chunks of samples go out, encoded members come back, in order, with a bounded number in flight.

Workers are spawned, so that no lock or thread of the parent is copied into them; they ignore Ctrl-C, which is the
parent's to handle, and they die with the parent, however it dies.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from multiprocessing import resource_tracker

import cv2

from prep.build.encode import EncodedSource, Job, encode_sample
from prep.build.plan import Chunk
from prep.raw import RawSample
from shards.errors import UserError

EncodedChunk = list[EncodedSource]

WORTH_SECONDS = 2.0  # of work left; starting a process takes about one
_SPARE = 2  # chunks in flight beyond one a worker: enough to keep all busy while the parent writes
_PR_SET_PDEATHSIG = 1
_job: Job | None = None


def encode_chunks(
    job: Job, chunks: Iterator[Chunk], count: int, workers: int
) -> Generator[tuple[Chunk, EncodedChunk], None, None]:
    """Encode chunks in order; at most workers + 2 of them are held in memory.

    Processes are started only where the work left takes longer than starting them, and until the first of them is
    up this process goes on by itself: more workers never make a small build slower.

    Args:
        job: what each worker is given once.
        chunks: drawn as they are needed.
        count: how many there are, for the estimate of the work left.
        workers: most processes.

    Raises:
        UserError: a worker process died (as a rule, for lack of memory).
    """
    with _one_thread():
        pace = float("inf")  # seconds a chunk at best; the first one pays for compiled kernels being loaded
        for done in range(count):
            if workers > 1 and done > 1 and pace * (count - done) > WORTH_SECONDS:
                yield from _encode_in_processes(job, chunks, workers)
                return
            chunk = next(chunks)
            start = time.monotonic()
            encoded = encode_chunk(job, chunk)
            pace = min(pace, time.monotonic() - start)
            yield chunk, encoded


def encode_chunk(job: Job, chunk: Chunk) -> EncodedChunk:
    """Encode one chunk in this process; raises UserError where there is not memory enough."""
    return [_encode(job, chunk.split, sample) for sample in chunk.samples]


def _encode(job: Job, split: str, sample: RawSample) -> EncodedSource:
    try:
        return encode_sample(job, split, sample)
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        raise UserError(
            f"{job.reader.name} {sample.key}: not memory enough for it here: run the same command again to continue, "
            "with fewer --workers or on a larger machine"
        ) from None


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV on one thread: the processes share the cores among them."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _encode_in_processes(
    job: Job, chunks: Iterator[Chunk], workers: int
) -> Generator[tuple[Chunk, EncodedChunk], None, None]:
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(job, os.getpid())
    )
    in_flight: deque[tuple[Chunk, Future[EncodedChunk]]] = deque()
    try:
        with _sigint_held():
            ready = [pool.submit(os.getpid) for _ in range(workers)]
        for chunk in chunks:
            if any_ready(ready):
                break
            yield chunk, encode_chunk(job, chunk)
        else:
            return
        with _death_is_one_line():
            for following in chain((chunk,), chunks):
                in_flight.append((following, pool.submit(_encode_in_worker, following)))
                if len(in_flight) == workers + _SPARE:
                    yield _result(in_flight)
            while in_flight:
                yield _result(in_flight)
    finally:
        with _sigint_held():  # a join that is interrupted takes the pool's thread for ended, and all hangs at the exit
            pool.shutdown(wait=True, cancel_futures=True)


def any_ready(first: Sequence[Future[int]]) -> bool:
    """Whether a worker has come up (or failed to)."""
    return any(future.done() for future in first)


def _result(in_flight: deque[tuple[Chunk, Future[EncodedChunk]]]) -> tuple[Chunk, EncodedChunk]:
    chunk, future = in_flight.popleft()
    return chunk, future.result()


@contextmanager
def _death_is_one_line() -> Iterator[None]:
    """A broken pool as an error for people; it shows where work is handed out as well as where it comes back."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, as a rule for lack of memory: run the same command again to continue, with fewer "
            "--workers"
        ) from None


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Ctrl-C waits until the end, and is not lost; children inherit that, so it cannot hit them while they import."""
    resource_tracker.ensure_running()  # else the pool starts it, and that lets signals through
    pressed: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if in_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt


def _start_worker(job: Job, parent: int) -> None:
    """Runs once in every worker, before its first chunk."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # held until here
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with_parent(parent)
    cv2.setNumThreads(1)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    if _job is None:
        raise RuntimeError("worker not started")
    return encode_chunk(_job, chunk)


def _die_with_parent(parent: int) -> None:
    """End this process when the parent is gone, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
