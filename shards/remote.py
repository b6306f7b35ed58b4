"""A shard set at a URL, read through a cache on this machine; the remote ``Store``.

The manifest is read anew whenever the set is opened. All other files are fetched whole, when first asked for or in
the background, and checked against the manifest's sha256 on arrival, so that a set is never a mix of old and new.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.ahead import unwanted
from shards.cache import Cache, CacheSettings, Part
from shards.errors import FormatError, SegshardsError, UserError
from shards.fetch import ChangedError, FaultError, MissingError, RefusedError, Source, Stream, shown, source_at
from shards.local import PROOFS, OpenFile
from shards.recent import LOCK, Recent

if TYPE_CHECKING:
    from shards.manifest import File

FETCHERS = 2  # threads that read ahead
SLOWEST = 1024  # bytes a second; what is slower counts as stalled
FIRST_RETRIES = 2  # at most, for the manifest: a wrong address should show soon
FURTHER = 1 << 16  # bytes that make a connection worth it, though it failed
PAUSE = 0.1  # seconds between looks whether anybody waits
USED = 60.0  # seconds between notes that a file is in use
ROTTEN = "what is written there comes back changed: the disk is failing"
CHANGED = "the remote file has changed under the same name, or its copy there is damaged: publish the whole set again"


@dataclass
class _InUse:
    """An open file, and when the cache was told last that it is in use (monotonic seconds)."""

    file: OpenFile
    noted: float


OPEN: Recent[_InUse] = Recent(32)  # by all stores together


def _is_removed(kept: _InUse) -> bool:
    """Whether a file is in the cache no more: it takes space as long as it is open."""
    return os.fstat(kept.file.fd).st_nlink == 0


def _is_idle(kept: _InUse) -> bool:
    """Whether a removed file was not read of lately."""
    return time.monotonic() - kept.noted > 2 * USED and _is_removed(kept)


def _release() -> bool:
    """Close all removed files; whether there was any."""
    return OPEN.drop_if(_is_removed) > 0


class RemoteStore:
    """See ``shards.store.Store``."""

    checks = True

    def __init__(self, url: str, settings: CacheSettings) -> None:
        """Raises UserError where nothing here can read such a URL."""
        self.name = shown(url)
        self._url, self._settings = url, settings
        self._source: Source = source_at(url, settings.timeout)
        self._cache = Cache(settings, _release)
        self._open = OPEN.keeper(self)
        self._plan: deque[File] = deque()
        self._fetchers, self._process = 0, os.getpid()

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, CacheSettings]]:
        return type(self), (self._url, self._settings)

    @property
    def room(self) -> int | None:
        """See ``Store.room``; None, too, where the cache cannot be used: whoever reads a file hears of it."""
        try:
            return self._cache.most
        except OSError:
            return None

    def small(self, path: str, most: int) -> bytes:
        """See ``Store.small``."""
        where = f"{self.name}/{path}"
        data = bytearray()

        def take(stream: Stream) -> None:
            data.clear()
            for piece in self._pieces(stream):
                data.extend(piece)
                if len(data) > most:
                    raise FormatError(where, f"larger than {most} bytes")
            if stream.total is not None and len(data) < stream.total:
                raise FaultError(f"connection cut after {len(data)} of {stream.total} bytes")

        try:
            self._persist(path, lambda: 0, take, min(self._settings.retries, FIRST_RETRIES))
        except MissingError as error:
            raise UserError(
                f"no {path} found in {self.name} ({error}); expected a shard set: check the address"
            ) from error
        except ChangedError as error:  # an answer to what was not asked: there is no part of it here
            raise UserError(f"{where}: refused ({error}): {_REMEDY_REFUSED}") from error
        return bytes(data)

    def whole(self, file: File) -> bytes:
        """See ``Store.whole``."""
        for _ in range(2):
            data = self._opened(file).read(0, file.bytes)
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return data
            self._cache.drop(file)  # rotten on our disk
        raise FormatError(self._cache.path(file), ROTTEN)

    def range(self, file: File, offset: int, length: int, proven: bool = False) -> bytes:
        """See ``Store.range``."""
        now = time.monotonic()
        kept = self._open.get(file.sha256)
        if kept is None or not (proven or kept.file.proven):
            OPEN.drop_if(_is_idle)
            kept = _InUse(self._opened(file) if proven else self._proved(file), now)
            self._open.put(file.sha256, kept)
        elif now - kept.noted > USED:
            kept.noted = now
            with suppress(OSError):
                os.utime(kept.file.fd)
        return kept.file.read(offset, length)

    def local(self, file: File) -> Path:
        """See ``Store.local``."""
        self.range(file, 0, 0)
        return self._cache.path(file)

    def check(self, file: File) -> str | None:
        """See ``Store.check``; a copy that is damaged here is fetched again."""
        try:
            if self._opened(file).sha256() != file.sha256:
                self._renewed(file)
        except FormatError as error:
            return str(error)
        return None

    def mend(self, file: File) -> bool:
        """See ``Store.mend``."""
        kept = self._open.get(file.sha256)
        opened = self._cache.find(file) if kept is None else kept.file
        if opened is None or opened.sha256() == file.sha256:
            return False
        self._open.drop(file.sha256)
        PROOFS.forget(self._cache.path(file))
        self._proved(file)  # another one may have fetched it again by now
        return True

    def _proved(self, file: File) -> OpenFile:
        """A file whose content is what the manifest says: hashed on arrival, or by this process, once."""
        opened, key = self._opened(file), self._cache.path(file)
        if not PROOFS.hold(opened, file.sha256, key):
            opened = self._renewed(file)
            if opened.sha256() != file.sha256:  # read back, this time
                raise FormatError(key, ROTTEN)
        opened.proven = True
        return opened

    def _renewed(self, file: File) -> OpenFile:
        """Fetch a file again whose copy is rotten."""
        self._cache.drop(file)
        self._open.drop(file.sha256)
        PROOFS.forget(self._cache.path(file))
        return self._opened(file)

    def ahead(self, files: Iterable[File]) -> None:
        """See ``Store.ahead``: as many as fill half of the cache, by threads of their own."""
        plan: deque[File] = deque()
        with suppress(OSError):
            plan.extend(_first(files, self._cache.most // 2))
        with LOCK:
            self._plan = plan
            if self._process != os.getpid():  # forked: the threads have stayed behind
                self._fetchers, self._process = 0, os.getpid()
            while self._fetchers < min(FETCHERS, len(self._plan)):
                self._fetchers += 1
                threading.Thread(target=_fetch_ahead, args=(weakref.ref(self),), daemon=True, name="fetch").start()

    def _opened(self, file: File) -> OpenFile:
        opened = self._cache.open(file, lambda part: self._fetch(file, part))
        if opened.proven:
            PROOFS.note(self._cache.path(file))
        return opened

    def _fetch(self, file: File, part: Part) -> None:
        """Bring a part to be the file. What has come is kept where a connection fails, and not where content differs.

        Raises:
            FormatError: no such file, or other content than the manifest says.
            UserError: refused, or the connection keeps failing.
            OSError: of the cache folder.
        """
        where = f"{self.name}/{file.path}"
        resumed = part.length > 0
        try:
            if part.length < file.bytes:
                take = partial(self._take, file, part)
                self._persist(file.path, lambda: part.length, take, self._settings.retries)
            if part.sha256 != file.sha256:
                raise ChangedError(f"sha256 {part.sha256[:12]}... found; the manifest has {file.sha256[:12]}...")
        except MissingError as error:
            part.restart()
            reason = f"not found ({error}); the manifest names it: publish the whole set again"
            raise FormatError(where, reason) from error
        except ChangedError as error:
            part.restart()
            if not resumed:
                raise FormatError(where, f"{error}: {CHANGED}") from error
            self._fetch(file, part)  # what had come before may have been of another file

    def _take(self, file: File, part: Part, stream: Stream) -> None:
        """Append what comes; raises FaultError, ChangedError."""
        if stream.total is not None and stream.total != file.bytes:
            raise ChangedError(f"{stream.total} bytes found; the manifest has {file.bytes}")
        if stream.start != part.length:
            part.restart()  # a server without ranges
        try:
            for data in self._pieces(stream):
                if part.length + len(data) > file.bytes:
                    raise ChangedError(f"more than {file.bytes} bytes found; the manifest has {file.bytes}")
                part.append(data)
        except FaultError:
            if part.length != file.bytes:
                raise  # else all has come, and the checksum decides: to ask for more would give an error
        if part.length < file.bytes:
            raise FaultError(f"connection cut after {part.length} of {file.bytes} bytes")

    def _pieces(self, stream: Stream) -> Iterator[bytes]:
        """What comes; raises FaultError where too little does, UserError where nobody waits for it any more."""
        began, came = time.monotonic(), 0
        while data := stream.more():
            yield data
            _check_wanted(self.name)
            came += len(data)
            took = time.monotonic() - began
            if took > self._settings.timeout:
                if came < SLOWEST * took:
                    raise FaultError(f"only {came} bytes came in {took:.0f} s")
                began, came = time.monotonic(), 0

    def _persist(self, path: str, start: Callable[[], int], take: Callable[[Stream], None], retries: int) -> None:
        """Connect and take what comes, again after faults, as long as it helps.

        Args:
            path: of the file.
            start: where in it to begin, asked for each time.
            take: what to do with what comes.
            retries: see there.

        Raises:
            UserError: refused, or ``retries`` connections in a row got no further than those before them.
            MissingError, ChangedError: as they come.
        """
        failed, furthest, where = 0, -1, f"{self.name}/{path}"
        while True:
            try:
                with self._source.read(path, start()) as stream:
                    take(stream)
                return
            except RefusedError as error:
                raise UserError(f"{where}: refused ({error}): {_REMEDY_REFUSED}") from error
            except FaultError as error:
                reached = start()
                failed = 1 if furthest >= 0 and reached >= furthest + FURTHER else failed + 1
                furthest = max(furthest, reached)
                if failed > retries:
                    tried = f"{failed} tries" if failed > 1 else "1 try"
                    raise UserError(f"{where}: {error}, after {tried}: {_REMEDY_FAULT}") from error
            end = time.monotonic() + min(self._settings.pause * 2 ** (failed - 1), self._settings.timeout)
            while (left := end - time.monotonic()) > 0:
                _check_wanted(self.name)
                time.sleep(min(left, PAUSE))


_REMEDY_REFUSED = "give a URL that this machine may read, signed or public, or credentials where fsspec looks for them"
_REMEDY_FAULT = "check the address and the network, then run the same again; what has come so far is kept"


def _check_wanted(name: str) -> None:
    """UserError where nobody waits for what this thread fetches, so that a program that is stopped ends."""
    if unwanted():
        raise UserError(f"{name}: stopped while a file was fetched; what has come so far is kept")


def _first(files: Iterable[File], most: int) -> list[File]:
    """The first files, of ``most`` bytes together at most."""
    found, total = [], 0
    for file in files:
        total += file.bytes
        if total > most:
            break
        found.append(file)
    return found


def _fetch_ahead(reference: weakref.ref[Any]) -> None:
    """A thread: fetch what is planned, one file after the other, until there is nothing or nobody is interested."""
    while (store := reference()) is not None:
        with LOCK:
            if not store._plan:
                store._fetchers -= 1
                return
            file = store._plan.popleft()
        with suppress(SegshardsError, OSError):  # whoever reads the file hears of it
            store._opened(file)
        del store
