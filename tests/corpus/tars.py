"""Tar headers that lie, odd kinds of members, odd names; and shards that changed places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.corpus.bases import Bases
from tests.corpus.case import Case, put
from tests.corpus.forge import Part, edit_part, joined, parts_of, write_sealed

SIZES = {
    "too small": b"%011o\0" % 3,
    "too large": b"%011o\0" % 5_000,
    "beyond the file": b"%011o\0" % 900_000,
    "8 GB": b"77777777777\0",
    "zero": b"%011o\0" % 0,
    "negative": b"-0000000012\0",
    "base-256": b"\x80" + (700).to_bytes(11, "big"),
    "base-256 huge": b"\x80" + (1 << 60).to_bytes(11, "big"),
    "base-256 negative": b"\xff" * 12,
    "not octal": b"99999999999\0",
    "letters": b"hello\0\0\0\0\0\0\0",
    "signs and underscores": b"+1_0\0\0\0\0\0\0\0\0",
    "blank": b" " * 12,
}
TYPES = {
    "hard link": {"typeflag": b"1", "linkname": b"aachen/other.jpg"},
    "symbolic link": {"typeflag": b"2", "linkname": b"../../../../etc/passwd"},
    "character device": {"typeflag": b"3", "devmajor": b"0000001\0", "devminor": b"0000005\0"},
    "block device": {"typeflag": b"4"},
    "folder": {"typeflag": b"5"},
    "pipe": {"typeflag": b"6"},
    "contiguous": {"typeflag": b"7"},
    "unknown type": {"typeflag": b"Z"},
    "sparse": {"typeflag": b"S"},
    "GNU magic": {"magic": b"ustar ", "version": b" \0"},
    "no magic": {"magic": b"\0" * 6, "version": b"\0\0"},
}
NAMES = {
    "up": b"../../escape.jpg",
    "up within": b"aachen/../../escape.jpg",
    "absolute": b"/etc/passwd.jpg",
    "nul": b"aachen/a\0b.jpg",
    "newline": b"aachen/a\nb.jpg",
    "escape sequence": b"aachen/\x1b[2Ja.jpg",
    "not UTF-8": b"aachen/caf\xe9\xff.jpg",
    "backslash": b"aachen\\b.jpg",
    "drive": b"C:/b.jpg",
    "no suffix": b"aachen/plain",
    "only a suffix": b".jpg",
    "unknown suffix": b"aachen/a.exe",
    "pickle": b"aachen/a.pickle",
    "empty": b"",
    "longest": b"a" * 96 + b".jpg",
}


def cases(bases: Bases) -> Iterator[Case]:
    for scale in ("1", "1-2"):
        yield from _headers(bases.tars("jpeg", scale=scale)[0])
    yield from _extensions(bases.tars("jpeg")[0])
    yield from _swaps(bases)


def _edited(name: str, kind: str, path: str, number: int, how: Callable[[Part], Part]) -> Case:
    def damage(folder: Path) -> None:
        edit_part(folder / path, number, how)

    return Case(f"{name}/{number}/{Path(path).stem}", kind, "jpeg", damage, (path,))


def _headers(path: str) -> Iterator[Case]:
    """One header field at a time, its checksum made anew (and once left wrong)."""
    for number in (0, 2, 5):
        for what, size in SIZES.items():
            yield _edited(f"size/{what}", "wrong sizes in tar headers", path, number, _with({"size": size}))
        for what, fields in TYPES.items():
            yield _edited(f"type/{what}", "links, devices, odd types", path, number, _with(fields))
            empty = _with(fields | {"size": b"%011o\0" % 0}, data=b"")
            yield _edited(f"empty type/{what}", "links, devices, odd types", path, number, empty)
        for what, name in NAMES.items():
            yield _edited(f"name/{what}", "odd and hostile names", path, number, _with({}, name=name))
        broken = _with({"chksum": b"000000\0 "})
        yield _edited("checksum/zero", "wrong header checksums", path, number, broken)
        yield _edited("checksum/blank", "wrong header checksums", path, number, _with({"chksum": b" " * 8}))


def _with(fields: dict[str, bytes], name: bytes | None = None, data: bytes | None = None) -> Callable[[Part], Part]:
    def edit(part: Part) -> Part:
        return replace(
            part,
            fields=part.fields | fields,
            name=part.name if name is None else name,
            data=part.data if data is None else data,
        )

    return edit


def _extensions(path: str) -> Iterator[Case]:
    """Headers of pax and GNU tar before a member: other names and sizes than the plain header says."""
    extra = {
        "pax name": Part(b"x", _pax(b"path", b"../evil.jpg"), {"typeflag": b"x"}),
        "pax size": Part(b"x", _pax(b"size", b"999999999"), {"typeflag": b"x"}),
        "pax negative size": Part(b"x", _pax(b"size", b"-5"), {"typeflag": b"x"}),
        "pax broken": Part(b"x", b"999 path=x\n", {"typeflag": b"x"}),
        "pax endless digits": Part(b"x", b"9" * 400 + b" path=x\n", {"typeflag": b"x"}),
        "pax for all": Part(b"g", _pax(b"path", b"every.jpg"), {"typeflag": b"g"}),
        "GNU long name": Part(b"././@LongLink", b"../" * 60 + b"evil.jpg\0", {"typeflag": b"L"}),
        "GNU long link": Part(b"././@LongLink", b"/etc/passwd\0", {"typeflag": b"K"}),
    }
    for what, part in extra.items():
        for at in (0, 3):

            def damage(folder: Path, part: Part = part, at: int = at) -> None:
                parts = parts_of((folder / path).read_bytes())
                put(folder / path, joined([*parts[:at], part, *parts[at:]]))

            yield Case(f"extension/{what}/{at}", "pax and GNU extensions", "jpeg", damage, (path,))


def _pax(key: bytes, value: bytes) -> bytes:
    record = b" " + key + b"=" + value + b"\n"
    return next(b"%d" % n + record for n in range(200) if len(b"%d" % n + record) == n)


def _swaps(bases: Bases) -> Iterator[Case]:
    """Shards in each other's place: with and without their indexes, of one stream, of two, of another build."""
    one, two = bases.tars("jpeg")[:2]
    small = bases.tars("jpeg", scale="1-2")[0]
    test = bases.tars("jpeg", "test")[0]
    pairs = {"same split": (one, two), "two scales": (one, small), "two splits": (one, test)}
    for what, (a, b) in pairs.items():
        for also in ((".tar",), (".index.jsonl",), (".tar", ".index.jsonl")):

            def damage(folder: Path, a: str = a, b: str = b, also: Sequence[str] = also) -> None:
                for suffix in also:
                    left, right = (folder / p.replace(".tar", suffix) for p in (a, b))
                    x, y = left.read_bytes(), right.read_bytes()
                    put(left, y)
                    put(right, x)

            files = tuple(p.replace(".tar", suffix) for p in (a, b) for suffix in also)
            yield Case(f"swap/{what}/{'+'.join(also)}", "swapped shards", "jpeg", damage, files)
    for path in (one, two, small, test):
        for also in ((".tar",), (".index.jsonl",), (".tar", ".index.jsonl")):

            def foreign(folder: Path, path: str = path, also: Sequence[str] = also) -> None:
                for suffix in also:
                    short = path.replace(".tar", suffix)
                    put(folder / short, (bases["other"] / short).read_bytes())

            files = tuple(path.replace(".tar", suffix) for suffix in also)
            yield Case(f"other build/{path}/{'+'.join(also)}", "shards of another build", "jpeg", foreign, files)

    def crossed(folder: Path) -> None:
        write_sealed(folder, one, parts_of((bases["jpeg"] / small).read_bytes()))
        write_sealed(folder, small, parts_of((bases["jpeg"] / one).read_bytes()))

    yield Case("swap/two scales/sealed", "swapped shards, sealed anew", "jpeg", crossed, (), sealed=True)
