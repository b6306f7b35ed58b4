"""What a source sample is made of: its bytes, each place read once, and the digest that says whether it has changed."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from prep.places import place_name, read_place
from prep.raw import FilePart, Place, RawSample
from shards.errors import SampleError

DIGEST_BYTES = 16
DIGEST_TEXT = 22  # characters
DIGEST_AT = slice(2, 2 + DIGEST_TEXT)  # in a line of sources.jsonl


@dataclass(frozen=True)
class Part:
    """One place of a sample.

    Attributes:
        name: as people know it, below the dataset's root.
        where: names sample and place in errors.
        content: its bytes, or why they cannot be read.
    """

    name: str
    where: str
    content: bytes | SampleError

    def data(self) -> bytes:
        """The bytes; raises SampleError."""
        if isinstance(self.content, SampleError):
            raise self.content
        return self.content


@dataclass(frozen=True)
class Source:
    """A sample and all that is read of it; only the image's name where the sample has a problem already."""

    sample: RawSample
    name: str
    image: Part | None
    label: Part | None
    instances: Part | None
    digest: str


def read_source(root: Path, split: str, sample: RawSample, prefix: str, instances: bool) -> Source:
    """Read what a sample's files hold; what cannot be read is told when it is asked for.

    Args:
        prefix: names the sample in errors.
        instances: whether instance maps are stored.

    Returns:
        The digest is over all that decides the sample's stored bytes, the build's settings aside: split, key, tags,
        metadata, the reader's facts, its complaint if it has one, and name and contents of each place. Of a place in a
        larger file (a tar, a JSON file) the contents count, not where they lie. sha256, cut to 128 bits.
    """
    name = place_name(sample.image, root)
    image = label = inner = None
    if sample.problem is None:
        image = _read(sample.image, name, prefix)
        if sample.label is not None:
            label = _read(sample.label, place_name(sample.label, root), prefix)
            if instances and sample.instances is not None:
                inner = _read(sample.instances, place_name(sample.instances, root), prefix)
    digest = _digest(split, sample, name, (image, label, inner))
    return Source(sample, name, image, label, inner, digest)


def _read(place: Place | tuple[FilePart, ...], name: str, prefix: str) -> Part:
    try:
        content: bytes | SampleError = read_place(place, prefix + name)
    except SampleError as error:
        content = error
    return Part(name, prefix + name, content)


def _digest(split: str, sample: RawSample, name: str, parts: tuple[Part | None, ...]) -> str:
    told = (split, sample.key, name, sample.problem, sample.weak, dict(sample.meta), sample.facts)
    digest = hashlib.sha256(repr(told).encode(errors="backslashreplace"))
    for part in parts:
        if part is None:
            digest.update(b"\0none")
            continue
        bad = isinstance(part.content, SampleError)
        data = str(part.content).encode(errors="backslashreplace") if bad else part.data()
        head = f"\0{'unreadable' if bad else 'read'} {part.name!r} {len(data)}\0"
        digest.update(head.encode(errors="backslashreplace"))
        digest.update(data)
    return base64.urlsafe_b64encode(digest.digest()[:DIGEST_BYTES]).rstrip(b"=").decode()
