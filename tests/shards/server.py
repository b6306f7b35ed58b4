"""A web server on this machine for tests of remote shard sets: counts what it is asked for and fails as it is told."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Trouble:
    """What is wrong with an answer: a status, a body cut or stalled after so many bytes, its pieces sent slowly, or
    (endless) all of it in chunks, without the last one that ends them."""

    status: int = 200
    cut: int | None = None
    stall: int | None = None
    trickle: float = 0.0
    wrong_range: bool = False
    endless: bool = False


@dataclass
class Asked:
    """A request: path, first byte asked for, bytes sent of the body."""

    path: str
    start: int
    sent: int = 0


@dataclass
class Server:
    """A folder on the web.

    Args:
        folder: what it serves.
        ranges: whether it knows ranges.
        length: whether it says how long files are.
        trouble: (path, how many requests for it came before) -> what goes wrong, None for nothing.
        replaced: path -> other content than the folder's.
        asked: all requests so far.
    """

    folder: Path
    ranges: bool = True
    length: bool = True
    trouble: Callable[[str, int], Trouble | None] = lambda path, before: None
    replaced: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Server:
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.served = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/data/set"

    def times(self, end: str) -> int:
        """How often files were asked for whose paths end so."""
        return sum(one.path.endswith(end) for one in self.asked)

    def sent(self, end: str) -> int:
        """Bytes sent of files whose paths end so."""
        return sum(one.sent for one in self.asked if one.path.endswith(end))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        served: Server = self.server.served
        path = unquote(urlsplit(self.path).path).removeprefix("/data/set/")
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and served.ranges else 0
        with served.lock:
            before = served.times(path)
            asked = Asked(path, start)
            served.asked.append(asked)
        trouble = served.trouble(path, before) or Trouble()
        file = served.folder / path
        if trouble.status != 200 or not (path in served.replaced or file.is_file()):
            self.send_error(trouble.status if trouble.status != 200 else 404)
            return
        data = served.replaced.get(path) or file.read_bytes()
        if wanted and served.ranges and start >= len(data):
            self.send_error(416)
            return
        self._answer(served, data, start, trouble, asked)

    def _answer(self, served: Server, data: bytes, start: int, trouble: Trouble, asked: Asked) -> None:
        ranged = "Range" in self.headers and served.ranges
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start + trouble.wrong_range}-{len(data) - 1}/{len(data)}")
        body = data[start:]
        if trouble.endless:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n" % (len(body), body)
        elif served.length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        most = min(x for x in (trouble.cut, trouble.stall, len(body)) if x is not None)
        step = 16 if trouble.trickle else max(most, 1)
        try:
            for at in range(0, most, step):
                self.wfile.write(body[at : min(at + step, most)])
                asked.sent += min(step, most - at)
                if trouble.trickle:
                    self.wfile.flush()
                    served.stop.wait(trouble.trickle)
            if trouble.stall is not None:
                self.wfile.flush()
                served.stop.wait(5)
        except (BrokenPipeError, ConnectionResetError):
            pass
