"""Where the files of a shard set are: a folder, or a URL behind a cache on this machine. Readers know only a Store.

>>> store = open_store("data/camvid")                       # or "https://host/camvid", "s3://bucket/camvid"
>>> data = store.range(file, offset, length)                # file: a ``shards.manifest.File``

The manifest names every file with its bytes and sha256, so nothing is ever listed or searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from shards.local import LocalStore

if TYPE_CHECKING:
    from shards.cache import CacheSettings
    from shards.manifest import File

Place = str | Path
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")  # a scheme has two letters at least: C:\ is none


class Store(Protocol):
    """The files of one shard set. It can be sent to other processes and is safe in threads.

    Args:
        name: what people call it: a folder or a URL; the beginning of every path in messages.
        checks: whether no damage may pass for data: then readers compare the checksums that they have.
    """

    name: str
    checks: bool

    @property
    def room(self) -> int | None:
        """Bytes that this machine keeps at once of a remote set, together with others; None: all of it is here."""

    def small(self, path: str, most: int) -> bytes:
        """A whole file that nothing vouches for yet: the manifest; raises UserError (none there), FormatError."""

    def whole(self, file: File) -> bytes:
        """A whole file, checked against its sha256; raises FormatError."""

    def range(self, file: File, offset: int, length: int, proven: bool = False) -> bytes:
        """Bytes of a file from ``offset`` on, fewer where it ends before; raises FormatError.

        Args:
            proven: whoever asks has a checksum of just these bytes, so that the file need not be hashed for them.
        """

    def local(self, file: File) -> Path:
        """The file on this machine; a remote one is fetched whole and checked; raises FormatError."""

    def check(self, file: File) -> str | None:
        """None if the file's bytes are what the manifest says, else the problem; raises UserError where it cannot be
        fetched at all: then this says nothing of the file."""

    def mend(self, file: File) -> bool:
        """After an error: whether this machine's copy was damaged and has been fetched anew, so that reading again
        helps; raises FormatError, UserError."""

    def ahead(self, files: Iterable[File]) -> None:
        """These will be read next, in this order: begin to fetch them. Returns at once and raises nothing.

        No more of them are taken than are fetched.
        """


def open_store(place: Place | Store, cache: CacheSettings | Place | None = None, check: bool = True) -> Store:
    """The store at a folder or URL; one that is open already is returned as it is.

    Args:
        place: a folder, or a URL: http(s)://, or one that fsspec knows, such as s3:// and gs://.
        cache: settings or folder of the cache for URLs; None: as the environment says (``CacheSettings.of``).
        check: let no damage of local files pass for data: samples with checksums of their own are compared with these,
            any other file is hashed whole when a process first reads of it. Remote ones are, on arrival, in any case.

    Raises:
        UserError: a URL that cannot be read here.
        SettingsError: settings of the environment that do not fit.
    """
    if not isinstance(place, str | Path):
        return place
    if not is_url(place):
        return LocalStore(Path(place), check)
    if str(place).startswith("file://"):
        return LocalStore(Path(unquote(urlsplit(str(place)).path)), check)
    from shards.cache import CacheSettings  # here: sets in a folder never need it
    from shards.remote import RemoteStore

    return RemoteStore(str(place), CacheSettings.of(cache))


def is_url(place: Place) -> bool:
    """Whether this is a URL rather than a folder."""
    return isinstance(place, str) and _URL.match(place) is not None


def as_place(word: Place) -> Place:
    """What a person has typed: a URL as it is, a folder as a Path."""
    return word if is_url(word) else Path(word)
