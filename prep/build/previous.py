"""A published set as an update finds it: which source samples it was made of, and the stored bytes of each.

Nothing of it is taken on trust: indexes and lists are checked against the manifest's sha256 when they are read, a shard
before the first sample is copied out of it, and every copied sample's headers against the index.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from prep.build.counts import Counts
from prep.build.encode import BadSample
from prep.build.known import Known, halves, read_digests
from prep.build.sources import SOURCES, decode_line
from prep.places import printable
from shards.codec import image_suffix
from shards.errors import FormatError
from shards.index import decode_index
from shards.manifest import File, Manifest, ScaleSet, Shard
from shards.scale import Scale
from shards.shardfile import Blocks
from shards.tar import IndexEntry, sample_blocks, split_blocks
from shards.verify import check_file

_LINE = re.compile(rb'\["[\w-]{22}",(\d+)[,\]]')
_INDEXES = 8  # that are held at a time, of each stream


class Place(NamedTuple):
    """Where a stored sample lies: in which group, as which of its samples, and its key and members."""

    group: int
    number: int
    entry: IndexEntry


class PreviousStream(Protocol):
    """One split at one scale of a published set."""

    part: ScaleSet

    def place(self, ordinal: int) -> Place:
        """Where stored sample `ordinal` lies; raises FormatError."""

    def blocks(self, ordinal: int) -> Blocks:
        """Its stored bytes, as a tar holds them; raises FormatError."""

    def shard(self, group: int) -> Shard | None:
        """The shard of a group; None where all groups share one store."""


class _Groups:
    """Ordinals -> groups."""

    def __init__(self, out: Path, part: ScaleSet) -> None:
        self.out, self.part = out, part
        self._starts = [0, *np.cumsum(np.asarray(part.groups, np.int64)).tolist()]
        self._checked: set[str] = set()

    def _find(self, ordinal: int) -> tuple[int, int]:
        group = bisect_right(self._starts, ordinal) - 1
        return group, ordinal - self._starts[group]

    def _check(self, files: Sequence[File]) -> None:
        """FormatError where a file's checksum is not the manifest's; each is looked at once."""
        for file in files:
            if file.path not in self._checked:
                if problem := check_file(self.out, file):
                    raise FormatError(self.out / file.path, f"{problem.removeprefix(f'{self.out / file.path}: ')}")
                self._checked.add(file.path)


class PreviousTars(_Groups):
    """Of a webdataset set."""

    def __init__(self, out: Path, part: ScaleSet) -> None:
        super().__init__(out, part)
        self._indexes: dict[int, list[IndexEntry]] = {}

    def place(self, ordinal: int) -> Place:
        group, number = self._find(ordinal)
        return Place(group, number, self._index(group)[number])

    def blocks(self, ordinal: int) -> Blocks:
        group, _, entry = self.place(ordinal)
        shard = self.part.shards[group]
        self._check([shard])
        path = self.out / shard.path
        with open(path, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.length)
        split_blocks(data, entry, path)
        return Blocks(data, entry.sizes)

    def shard(self, group: int) -> Shard | None:
        return self.part.shards[group]

    def _index(self, group: int) -> list[IndexEntry]:
        if group not in self._indexes:
            file = self.part.shards[group].index
            data = (self.out / file.path).read_bytes()
            entries = decode_index(data, self.out / file.path)
            if hashlib.sha256(data).hexdigest() != file.sha256 or len(entries) != self.part.groups[group]:
                raise FormatError(self.out / file.path, "differs from the manifest: damaged; build again with --fresh")
            while len(self._indexes) >= _INDEXES:
                del self._indexes[next(iter(self._indexes))]
            self._indexes[group] = entries
        return self._indexes[group]


class PreviousStore(_Groups):
    """Of a zarr set."""

    def __init__(self, out: Path, part: ScaleSet) -> None:
        super().__init__(out, part)
        self._arrays: Any = None
        self._offsets: dict[str, npt.NDArray[np.uint64]] = {}  # of each member, [samples + 1]
        self._keys = b""

    def place(self, ordinal: int) -> Place:
        self._open()
        spans = {name: self._span(name, ordinal) for name in self._offsets if name != "key"}
        sizes = {{"image": "jpg"}.get(name, name): end - at for name, (at, end) in spans.items() if end > at}
        at, end = self._span("key", ordinal)  # the suffix of the image does not change how long its blocks are
        return Place(*self._find(ordinal), IndexEntry(self._keys[at:end].decode(), 0, sizes))

    def blocks(self, ordinal: int) -> Blocks:
        self._open()
        self._check(self.part.files)
        members = {}
        for name in ("image", "seg.png", "inst.png", "soft.npz", "json"):
            at, end = self._span(name, ordinal) if name in self._offsets else (0, 0)
            if end > at:
                data = bytes(self._arrays[f"{name}/data"][at:end].tobytes())
                members[image_suffix(data, self.out) if name == "image" else name] = data
        entry = self.place(ordinal).entry
        return Blocks(sample_blocks(entry.key, members), {name: len(data) for name, data in members.items()})

    def shard(self, group: int) -> Shard | None:
        return None

    def _span(self, name: str, ordinal: int) -> tuple[int, int]:
        return int(self._offsets[name][ordinal]), int(self._offsets[name][ordinal + 1])

    def _open(self) -> None:
        """Offsets and keys, which are small; the rest stays where it is."""
        if self._arrays is not None:
            return
        import zarr

        store = str(self.part.store)
        self._check([f for f in self.part.files if not re.search(r"(?<!key)/data/c/", f.path.removeprefix(store))])
        self._arrays = zarr.open_group(str(self.out / store), mode="r", zarr_format=3)
        for name, _ in self._arrays.groups():
            self._offsets[name] = np.asarray(self._arrays[f"{name}/offsets"][:], np.uint64)
        self._keys = self._arrays["key/data"][:].tobytes()


class PreviousSplit:
    """One split: its source samples as lines, and its stored samples at each scale."""

    def __init__(self, out: Path, manifest: Manifest, name: str, first: int, bad: Sequence[BadSample]) -> None:
        """Args: first: number of its first line, over all splits; bad: its quarantined samples, in order."""
        self.name, self.first, self.bad = name, first, bad
        self.scales = tuple(Scale.parse(scale) for scale in manifest.settings["scales"])
        parts = manifest.splits[name].scales
        kind = PreviousStore if manifest.format == "zarr" else PreviousTars
        self.streams: dict[str, PreviousStream] = {
            f"{name}/{scale.folder}": kind(out, parts[str(scale)]) for scale in self.scales
        }
        self._path = out / name / SOURCES
        self._lines: BufferedReader | None = None
        self.file = next(file for file in manifest.files if file.path == f"{name}/{SOURCES}")
        if problem := check_file(out, self.file):
            raise FormatError(self._path, f"{problem.removeprefix(f'{self._path}: ')}; or start over with --fresh")
        self._read()
        stored, quarantined = self._starts[-1], len(self._bad_lines)
        if stored != manifest.splits[name].samples or quarantined != len(bad):
            raise FormatError(self._path, "does not fit the manifest: start over with --fresh")

    def _read(self) -> None:
        """Where each line begins, its first stored sample, and which lines are of quarantined samples."""
        self._offsets, self._starts, self._bad_lines = array("q", [0]), array("Q", [0]), array("q")
        with open(self._path, "rb") as file:
            for number, line in enumerate(file):
                match = _LINE.match(line)
                if match is None:
                    raise FormatError(self._path, "a line is not one of a source sample: start over with --fresh")
                samples = int(match[1])
                self._offsets.append(self._offsets[-1] + len(line))
                self._starts.append(self._starts[-1] + samples)
                if not samples:
                    self._bad_lines.append(number)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def digests(self) -> bytes:
        """Of all lines, 16 bytes each."""
        return read_digests(self._path)

    def counts(self, line: int) -> Counts:
        """What the statistics count of a source sample."""
        if self._lines is None:
            self._lines = open(self._path, "rb")  # noqa: SIM115  # closed with the set
        self._lines.seek(self._offsets[line])
        return decode_line(self._lines.readline(), self.scales, self._path, line + 1)[1]

    def ordinals(self, line: int) -> range:
        """Its stored samples."""
        return range(self._starts[line], self._starts[line + 1])

    def quarantined(self, line: int) -> list[BadSample]:
        """Its entry in quarantine, if it has one."""
        if self._starts[line] != self._starts[line + 1]:
            return []
        return [self.bad[bisect_left(self._bad_lines, line)]]

    def missing_from(self, digests: bytes) -> Iterator[int]:
        """The lines whose digests are not among these."""
        gone = ~np.isin(halves(self.digests())[0], halves(digests)[0])
        return (int(line) for line in np.flatnonzero(gone))

    def key(self, line: int, windows: bool) -> str:
        """The key of a source sample.

        Args:
            windows: whether stored keys end in a window's place.
        """
        if bad := self.quarantined(line):
            return bad[0].key
        stored = next(iter(self.streams.values())).place(self._starts[line]).entry.key
        return stored.rpartition("/")[0] if windows else stored

    def close(self) -> None:
        """Close the list of lines."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None


class Previous:
    """All splits of a published set."""

    def __init__(self, out: Path, manifest: Manifest, bad: Sequence[BadSample]) -> None:
        """Args: bad: all its quarantined samples. Raises FormatError."""
        self.out, self.manifest = out, manifest
        self.splits: dict[str, PreviousSplit] = {}
        first = 0
        for name in manifest.splits:
            own = [sample for sample in bad if sample.split == name]
            self.splits[name] = PreviousSplit(out, manifest, name, first, own)
            first += len(self.splits[name])

    def known(self, path: Path) -> Known:
        """The table of all lines' digests, written to `path`."""
        return Known.write(path, b"".join(split.digests() for split in self.splits.values()))

    def close(self) -> None:
        """Close its files."""
        for split in self.splits.values():
            split.close()

    def stream(self, name: str) -> PreviousStream | None:
        """The stream "<split>/<scale folder>"; None where there is no such split."""
        split = self.splits.get(name.partition("/")[0])
        return split.streams[name] if split else None


def key_hash(key: str) -> int:
    """64 bits of a source sample's key."""
    return int.from_bytes(hashlib.sha256(printable(key).encode()).digest()[:8])
