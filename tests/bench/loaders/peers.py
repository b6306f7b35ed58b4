"""Who takes part in the bench, and where each one lives.

A peer has a virtual environment of its own, .bench/venv/<peer>, made by the bench with pip from requirements/<peer>.txt
(exact versions); the project's own install takes no part in it. segshards' decoders are imported there from the
repository, for the tables in which all rivals decode alike. A peer that cannot be installed is named and left out.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BENCH = ROOT / ".bench"
OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """A rival.

    Args:
        name: of its module peer_<name>, its requirements and its environment.
        title: as tables name it.
        settings: numbers of workers or threads that are tried; the best counts.
        writes: whether it has a format of its own.
    """

    name: str
    title: str
    settings: tuple[str, ...]
    writes: bool = True

    @property
    def home(self) -> Path:
        """Its virtual environment."""
        return BENCH / "venv" / self.name

    @property
    def python(self) -> str:
        """Its interpreter; ours is this one."""
        return sys.executable if self.name == OURS else str(self.home / "bin" / "python")

    @property
    def environment(self) -> dict[str, str]:
        """Its processes' variables: one thread a library, nothing fetched."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        fixed = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "LD_LIBRARY_PATH": str(self.home / "ffmpeg")}
        return {**os.environ, **threads, **fixed}

    @property
    def requirements(self) -> Path:
        """What is installed there."""
        return HERE / "requirements" / f"{self.name}.txt"


PEERS = (
    Peer(OURS, "segshards", ("threads=2", "threads=3"), writes=False),
    Peer("webdataset", "webdataset", ("workers=2", "workers=3"), writes=False),
    Peer("streaming", "MosaicML Streaming", ("workers=2", "workers=3")),
    Peer("litdata", "LitData", ("workers=2", "workers=3")),
    Peer("spdl", "SPDL", ("threads=2", "threads=3"), writes=False),
    Peer("grain", "Grain", ("threads=2", "threads=4", "workers=2")),
    Peer("datasets", "Hugging Face datasets", ("workers=2", "workers=3")),
)
BY_NAME = {peer.name: peer for peer in PEERS}


def install(peer: Peer) -> str | None:
    """Make a peer's environment if it is not there yet; None, or why it is absent."""
    if peer.name == OURS:
        return None
    stamp, wanted = peer.home / "installed", _digest(peer)
    if stamp.is_file() and stamp.read_text() == wanted:
        return None
    print(f"installing {peer.title} into {peer.home.relative_to(ROOT)} ...", flush=True)
    shutil.rmtree(peer.home, ignore_errors=True)
    pip = [peer.python, "-m", "pip", "install", "--quiet", "-r", str(peer.requirements)]
    for command in ([sys.executable, "-m", "venv", str(peer.home)], pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return last_line(done.stderr) or f"exit code {done.returncode}"
    link_ffmpeg(peer.home)
    stamp.write_text(wanted)
    return None


def link_ffmpeg(home: Path) -> None:
    """Give FFmpeg's libraries of PyAV's wheel, where it is installed, the names under which SPDL looks for them."""
    for path in home.glob("lib/python*/site-packages/av.libs/lib*.so.*"):
        found = re.fullmatch(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.([0-9]+)\..*", path.name)
        if found:
            (path.parent / f"{found[1]}.so.{found[2]}").symlink_to(path.name)
            (home / "ffmpeg").unlink(missing_ok=True)
            (home / "ffmpeg").symlink_to(path.parent)


def last_line(text: str) -> str:
    """The last line that says something of what a program wrote."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "WARNING" not in line]
    return lines[-1] if lines else ""


def _digest(peer: Peer) -> str:
    """Of all that decides what is installed."""
    files = (peer.requirements, HERE / "requirements" / "base.txt")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()
