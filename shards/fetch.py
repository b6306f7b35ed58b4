"""Bytes of a remote shard set as a stream, from any place in a file on: by HTTP, or by fsspec for all other URLs."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from shards.errors import UserError, first_line

PIECE = 1 << 20  # bytes at a time
PLAIN = "/%:@!$&'()*+,;=~?"  # in an address as people give it: letters of other alphabets and spaces are quoted
AGAIN = (408, 425, 429)  # besides 500 and more: HTTP errors that pass
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class FaultError(Exception):
    """A connection failed in a way that may pass: worth another try."""


class MissingError(Exception):
    """There is no such file."""


class RefusedError(Exception):
    """The server will not give the file, however often it is asked."""


class ChangedError(Exception):
    """The file is shorter than what has come of it before."""


@dataclass(frozen=True)
class Stream:
    """Bytes that are coming; a context manager that ends the connection.

    Args:
        start: where in the file they begin: where was asked, or 0 from a server without ranges.
        total: bytes of the whole file, None where unknown.
        more: gives the next bytes, none at the end; raises FaultError.
        close: ends the connection.
    """

    start: int
    total: int | None
    more: Callable[[], bytes]
    close: Callable[[], None]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Source(Protocol):
    """The files below a URL."""

    def read(self, path: str, start: int) -> Stream:
        """A file from ``start`` on; raises FaultError, MissingError and RefusedError, each with a reason for people."""


def source_at(url: str, timeout: float) -> Source:
    """What reads below a URL.

    Raises:
        UserError: no URL, a scheme that nobody knows, a package that is missing, a password in the URL.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise UserError(f"{shown(url)} is no URL ({error}): expected one such as https://host/folder") from error
    return HttpSource(url, timeout) if scheme in ("http", "https") else FsspecSource(url)


def shown(url: str) -> str:
    """A URL for messages: what follows "?" may be a secret, a password is one."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1@", url.partition("?")[0]).rstrip("/")


class HttpSource:
    """A web server; ranges are used where it has them."""

    def __init__(self, url: str, timeout: float) -> None:
        self._parts, self._timeout = urlsplit(url), timeout
        if "@" in self._parts.netloc:
            raise UserError(f"a password found in the URL for {self._parts.hostname}; expected none: use a signed URL")
        self._path, self._query = (
            quote(part, safe=PLAIN) for part in (self._parts.path.rstrip("/"), self._parts.query)
        )
        handlers = (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler)
        more = (urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor)
        self._opener = urllib.request.OpenerDirector()  # of redirects, follows those to the web only
        for handler in (*handlers, *more, urllib.request.HTTPRedirectHandler):
            self._opener.add_handler(handler())

    def read(self, path: str, start: int) -> Stream:
        """See ``Source.read``."""
        address = self._parts._replace(path=f"{self._path}/{quote(path)}", query=self._query)
        headers = {"Accept-Encoding": "identity", "User-Agent": "segshards"}
        if start:
            headers["Range"] = f"bytes={start}-"
        request = urllib.request.Request(urlunsplit(address), headers=headers)
        with _http_faults(self._timeout):
            answer = self._opener.open(request, timeout=self._timeout)
            begins, total = _range_of(answer, start)

        def more() -> bytes:
            with _http_faults(self._timeout):
                data: bytes = answer.read1(PIECE)
            return data

        return Stream(begins, total, more, answer.close)


def _range_of(answer: Any, asked: int) -> tuple[int, int | None]:
    """(first byte, bytes of the whole file) of what a server sends; raises RefusedError."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError("the server sends the file in another encoding than it was asked for")
    if answer.status != 206:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not found or int(found[1]) != asked:
        raise RefusedError("the server sends another range than it was asked for")
    return asked, None if found[2] == "*" else int(found[2])


@contextmanager
def _http_faults(timeout: float) -> Iterator[None]:
    """Turn what urllib raises into FaultError, MissingError and RefusedError."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        said = f"HTTP {error.code} {error.reason}".strip()
        if error.code == 416:  # our part is as long as the file now there, or longer
            raise ChangedError(said) from error
        if error.code in (404, 410):
            raise MissingError(said) from error
        raise (FaultError if error.code >= 500 or error.code in AGAIN else RefusedError)(said) from error
    except TimeoutError as error:
        raise FaultError(f"nothing came for {timeout:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise FaultError(f"no connection within {timeout:g} s") from error
        raise FaultError(f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise FaultError(f"connection lost: {str(error) or type(error).__name__}") from error
    except ValueError as error:  # a redirect to no URL, a length of thousands of digits, a host of odd letters
        raise RefusedError(f"address or answer not understood: {first_line(error)}") from error


class FsspecSource:
    """Any file system that fsspec knows: s3://, gs://, memory://, ... configured as fsspec says."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connect()

    def _connect(self) -> None:
        import fsspec  # here: sets in a folder never need it

        scheme, plain = self._url.partition(":")[0], shown(self._url)
        try:
            self._files, self._root = fsspec.url_to_fs(self._url)
            self._process = os.getpid()
        except ImportError as error:
            extra = EXTRAS.get(scheme)
            remedy = f"pip install 'segshards[{extra}]'" if extra else first_line(error)
            raise UserError(f"{plain}: {scheme}:// needs a package that is not installed: {remedy}") from error
        except Exception as error:
            raise UserError(
                f"{plain} cannot be opened ({first_line(error)}); expected a URL that fsspec knows"
            ) from error

    def read(self, path: str, start: int) -> Stream:
        """See ``Source.read``."""
        if self._process != os.getpid():  # forked: many of them work in the process alone that made them
            self._connect()
        with _any_faults():
            file = self._files.open(f"{self._root.rstrip('/')}/{path}", "rb")
            total = file.seek(0, 2)
            begins = file.seek(min(start, total))

        def more() -> bytes:
            with _any_faults():
                data: bytes = file.read(PIECE)
            return data

        return Stream(begins, total, more, file.close)


@contextmanager
def _any_faults() -> Iterator[None]:
    """Turn what a file system raises into FaultError, MissingError and RefusedError."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError("no such file") from error
    except PermissionError as error:
        raise RefusedError(first_line(error)) from error
    except Exception as error:  # each has its own
        raise FaultError(first_line(error)) from error
