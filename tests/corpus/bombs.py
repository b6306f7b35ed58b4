"""Files that claim, or unpack to, far more than they weigh; most are sealed, so that decoders meet them.

A claim beyond the caps of `shards` must cost nothing; what is within them may cost what it says.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.corpus.bases import Bases
from tests.corpus.case import Case
from tests.corpus.forge import Part, forge_member, load, parts_of, reseal, store, write_sealed

Bytes = bytes | Callable[[], bytes]  # large ones are made when they are wanted
LOOP = b"II*\0\x08\0\0\0\x01\0i\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"  # an EXIF directory within itself
SPRUNG: list[str] = []  # what a pickle that somebody unpacked has done


def spring(what: str) -> str:
    """What the pickles of the corpus call: proof that one was unpacked."""
    SPRUNG.append(what)
    return what


def zeros(size: int, wrapped: bool = True) -> bytes:
    """A deflate stream (in zlib's wrapping) that gives about `size` zeros, in no time: one block, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    count = size >> 24
    stream = block * count + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    check = ((count << 24) % 65_521) << 16 | 1
    return b"\x78\x9c" + stream + check.to_bytes(4, "big") if wrapped else stream


class Trap:
    """Pickles to a call of `spring`."""

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return spring, ("pickle",)


def cases(bases: Bases) -> Iterator[Case]:
    one, small, png = bases.tars("jpeg")[0], bases.tars("jpeg", scale="1-2")[0], bases.tars("png")[0]
    honest = {part.suffix: part.data for path in (one, small) for part in parts_of((bases["jpeg"] / path).read_bytes())}
    for suffix in ("seg.png", "inst.png"):
        for what, data in _pngs(honest[suffix]).items():
            yield _forged("png", what, "jpeg", one, suffix, data)
    for what, data in _pngs(next(p.data for p in parts_of((bases["png"] / png).read_bytes()))).items():
        yield _forged("png", what, "png", png, "png", data)
    for what, data in _jpegs(honest["jpg"]).items():
        yield _forged("jpeg", what, "jpeg", one, "jpg", data)
    webp = bases.tars("webp")[0]
    for what, data in _webps(parts_of((bases["webp"] / webp).read_bytes())[0].data).items():
        yield _forged("webp", what, "webp", webp, "webp", data)
    for what, data in _npzs(honest["soft.npz"]).items():
        yield _forged("npz", what, "jpeg", small, "soft.npz", data)
    for what, data in _jsons(honest["json"]).items():
        yield _forged("json", what, "jpeg", one, "json", data)
    yield from _texts(one)
    yield from _pickles(one)


def _forged(kind: str, what: str, base: str, tar: str, suffix: str, data: Bytes) -> Case:
    def damage(folder: Path) -> None:
        forge_member(folder, tar, suffix, data if isinstance(data, bytes) else data())

    name = f"bomb/{kind}/{what}/{suffix}"
    picture = suffix in ("jpg", "png", "webp", "inst.png")
    return Case(name, f"bombs and absurd headers: {kind}", base, damage, sealed=True, bomb=True, unvouched=picture)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, data: bytes, *more: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (_chunk(b"IHDR", head), *more, _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _pngs(honest: bytes) -> dict[str, Bytes]:
    """Absurd sizes, with the honest file's type; zero-filled pictures that really unpack; broken chunks."""
    depth, colour = honest[24], honest[25]
    pixel = depth // 8 * {0: 1, 2: 3}[colour]
    few = zlib.compress(bytes(64))
    out: dict[str, Bytes] = {
        f"claims {w}x{h}": _png(w, h, depth, colour, few)
        for w, h in ((2**31 - 1, 2**31 - 1), (2**31, 2**31), (0, 0), (0, 5), (60_000, 60_000), (2**31 - 1, 1))
    }
    out["claims 16000x16000 within the cap"] = _png(16_000, 16_000, depth, colour, few)
    out["zeros that do unpack"] = lambda: _png(3_000, 3_000, depth, colour, zeros(32 << 20))
    w, h = struct.unpack(">II", honest[16:24])
    out["data beyond its rows"] = lambda: _png(w, h, depth, colour, zeros(512 << 20))
    out["data short of its rows"] = _png(w, h, depth, colour, few)
    rows = zlib.compress((b"\0" + bytes(w * pixel)) * h)
    for kind in (b"zTXt", b"iCCP"):
        out[f"{kind.decode()} that unpacks to 2 GB"] = lambda kind=kind: _png(
            w, h, depth, colour, rows, _chunk(kind, b"a\0\0" + zeros(2 << 30))
        )
    out["palette without one"] = _png(w, h, 8, 3, rows)
    out["depth 3"] = _png(w, h, 3, 0, rows)
    out["chunk of 2 GB"] = honest[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + honest[41:]
    out["header twice"] = honest[:33] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, depth, colour, 0, 0, 0))
    out["no end"] = honest[:-12]
    out["animated"] = _png(w, h, depth, colour, rows, _chunk(b"acTL", struct.pack(">II", 10**9, 0)))
    return out


def _jpegs(honest: bytes) -> dict[str, bytes]:
    at = honest.index(b"\xff\xc0") + 5
    size = lambda h, w: honest[:at] + struct.pack(">HH", h, w) + honest[at + 4 :]  # noqa: E731
    return {
        "claims 65535x65535": size(65_535, 65_535),
        "claims 0x0": size(0, 0),
        "claims 65535x1": size(65_535, 1),
        "claims 16000x16000 within the cap": size(16_000, 16_000),
        "claims 40x48": size(40, 48),
        "claims 255 components": honest[: at + 4] + b"\xff" + honest[at + 5 :],
        "claims 12 bits": honest[: at - 1] + b"\x0c" + honest[at:],
        "segment beyond the end": honest[:4] + b"\xff\xff" + honest[6:],
        "only its start": honest[:2],
        "no end": honest[:-2],
        "a thousand scans": honest[:-2] + honest[honest.index(b"\xff\xda") : -2] * 1000 + b"\xff\xd9",
        "EXIF that points at itself": honest[:2] + _exif(LOOP),
    }


def _exif(data: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(data) + 8) + b"Exif\0\0" + data


def _webps(honest: bytes) -> dict[str, bytes]:
    vp8l = honest.index(b"VP8L") + 9
    bits = struct.pack("<I", (16_383) | (16_383 << 14))
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    return {
        "claims 16384x16384": honest[:vp8l] + bits + honest[vp8l + 4 :],
        "canvas of 2^24 squared": honest[:12] + extended + honest[12:],
        "chunk of 4 GB": honest[:16] + b"\xff\xff\xff\xff" + honest[20:],
        "riff of 4 GB": honest[:4] + b"\xff\xff\xff\xff" + honest[8:],
        "riff of 0": honest[:4] + bytes(4) + honest[8:],
        "only its start": honest[:16],
    }


def _npy(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(text)) + text + data


def _header(shape: object, descr: str = "|u1", fortran: bool = False) -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


def _zip(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return out.getvalue()


def _npzs(honest: bytes) -> dict[str, Bytes]:
    """Arrays that claim TBs, streams that unpack to GBs, objects, and zip files that contradict themselves."""
    with zipfile.ZipFile(io.BytesIO(honest)) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    with_base = lambda data: _zip({**good, "base.npy": data})  # noqa: E731
    out: dict[str, Bytes] = {
        "base claims TBs": with_base(_npy(_header((1 << 21, 1 << 21)), b"")),
        "base claims more than 2^64": with_base(_npy(_header((1 << 40, 1 << 40)), b"")),
        "base of a negative size": with_base(_npy(_header((-4, -6)), bytes(24))),
        "base of zero rows": with_base(_npy(_header((0, 1 << 40)), b"")),
        "base of floats": with_base(_npy(_header((16, 24), "<f8"), bytes(8 * 384))),
        "base of objects": with_base(_npy(_header((16, 24), "|O"), pickle.dumps(Trap()))),
        "base of records": with_base(_npy(_header((16, 24), "|V1000000000"), b"")),
        "base of 30 dimensions": with_base(_npy(_header((1,) * 30), b"\0")),
        "header that is code": with_base(_npy("__import__('os').getpid()", b"")),
        "header nested deep": with_base(_npy("(" * 900 + ")" * 900, b"")),
        "header of 60 KB": with_base(_npy("{" + " " * 60_000 + "}", b"")),
        "npy version 3": with_base(_npy(_header((16, 24)), bytes(384), b"\x03\x00")),
        "npy version 9": with_base(_npy(_header((16, 24)), bytes(384), b"\x09\x00")),
        "a pickle alone": with_base(pickle.dumps(Trap())),
        "mixed that unpacks to 300 MB": lambda: _zip(
            {**good, "mixed.npy": _npy(_header((300 << 20,)), bytes(300 << 20))}
        ),
        "base that unpacks to 250 MB": lambda: with_base(_npy(_header((1 << 14, 16_000)), bytes((1 << 14) * 16_000))),
        "base that unpacks to 3 GB": lambda: _inflating("base.npy", good, 3 << 30),
        "name twice": _zip_twice(good),
        "one more": _zip({**good, "extra.npy": good["base.npy"]}),
        "one less": _zip({name: data for name, data in good.items() if name != "mixed.npy"}),
        "names that climb": _zip({"../base.npy": good["base.npy"]}),
        "many members": lambda: _zip({f"{n}.npy": b"" for n in range(9_000)}, zipfile.ZIP_STORED),
        "stored, not packed": _zip(good, zipfile.ZIP_STORED),
        "packed by bzip2": _zip(good, zipfile.ZIP_BZIP2),
        "packed by lzma": _zip(good, zipfile.ZIP_LZMA),
        "no directory": honest[: honest.index(b"PK\x01\x02")],
        "empty": b"",
        "an end and nothing else": honest[honest.rindex(b"PK\x05\x06") :],
        "text": b"{}",
        "denominator 0": _zip({**good, "denominator.npy": _npy(_header((), "<u2"), b"\0\0")}),
        "denominator 65535": _zip({**good, "denominator.npy": _npy(_header((), "<u2"), b"\xff\xff")}),
    }
    return out | _odd_directories(honest) | _odd_labels(good)


def _zip_twice(good: dict[str, bytes]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says that a name comes twice, which is the point
        return _zip([*good.items(), ("base.npy", good["base.npy"])])


def _odd_directories(honest: bytes) -> dict[str, bytes]:
    """Zip directories that contradict the members."""
    entry, end = honest.index(b"PK\x01\x02"), honest.rindex(b"PK\x05\x06")
    patch = lambda at, data: honest[:at] + data + honest[at + len(data) :]  # noqa: E731
    return {
        "directory: unpacks to 4 GB": patch(entry + 24, b"\xfe\xff\xff\xff"),
        "directory: unpacks to 1 byte": patch(entry + 24, b"\x01\0\0\0"),
        "directory: packed size 4 GB": patch(entry + 20, b"\xfe\xff\xff\xff"),
        "directory: packed size 1": patch(entry + 20, b"\x01\0\0\0"),
        "directory: another checksum": patch(entry + 16, b"abcd"),
        "directory: member elsewhere": patch(entry + 42, b"\xff\xff\x00\x00"),
        "directory: member at another": patch(entry + 42, struct.pack("<I", honest.index(b"PK\x03\x04", 4))),
        "directory: encrypted": patch(entry + 8, b"\x01\0"),
        "directory: method 99": patch(entry + 10, b"\x63\0"),
        "directory: other name": patch(entry + 46, b"basf.npy"),
        "end: directory elsewhere": patch(end + 16, b"\x00\x00\xff\x7f"),
        "end: 65535 members": patch(end + 8, b"\xff\xff\xff\xff"),
        "local header: another name": patch(30, b"basf.npy"),
        "local header: name of 65535": patch(26, b"\xff\xff"),
    }


def _odd_labels(good: dict[str, bytes]) -> dict[str, bytes]:
    """Arrays that are well formed and make no label."""
    full = lambda shape, value, kind: np.full(shape, value, kind)  # noqa: E731
    odd = {
        "classes beyond the table": {"base": full((16, 24), 200, "u1")},
        "another shape": {
            "base": full((16, 25), 0, "u1"),
            "mixed": full(50, 0, "u1"),
            "further": full((2, 0), 0, "u1"),
        },
        "all flags set": {"mixed": full(48, 255, "u1")},
        "no flags": {"mixed": full(0, 0, "u1")},
        "weights of 0": {"further": full((2, 8), 0, "u1")},
        "one row of entries": {"further": full((1, 8), 0, "u1")},
        "scalar base": {"base": full((), 0, "u1")},
    }
    out = {}
    for what, arrays in odd.items():
        members = dict(good)
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
            members[f"{name}.npy"] = stream.getvalue()
        out[what] = _zip(members)
    return out


def _inflating(name: str, good: dict[str, bytes], size: int) -> bytes:
    """A zip whose directory says that a member is small, and whose stream gives `size` zeros; laid out by hand."""
    packed = zeros(size, wrapped=False)
    out, directory = b"", b""
    for member, data in good.items():
        stream, length, method = (packed, 4_000, 8) if member == name else (data, len(data), 0)
        common = struct.pack(
            "<HHHHHIIIHH", 20, 0, method, 0, 0x21, zlib.crc32(data), len(stream), length, len(member), 0
        )
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(out))
        directory += member.encode()
        out += b"PK\x03\x04" + common + member.encode() + stream
    end = struct.pack("<HHHHIIH", 0, 0, len(good), len(good), len(directory), len(out), 0)
    return out + directory + b"PK\x05\x06" + end


def _jsons(honest: bytes) -> dict[str, Bytes]:
    meta = json.loads(honest)
    with_meta = lambda **more: json.dumps(meta | more).encode()  # noqa: E731
    return {
        "nested 100,000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "a number of 100,000 digits": b'{"size":' + b"9" * 100_000 + b"}",
        "1e999": b'{"size":1e999}',
        "NaN": with_meta(size=[float("nan"), 2]),
        "not UTF-8": b'{"key":"\xff\xfe"}',
        "UTF-16": honest.decode().encode("utf-16"),
        "half a surrogate pair": with_meta(key="\ud800"),
        "nul": honest + b"\0",
        "a list": b"[]",
        "null": b"null",
        "empty": b"",
        "17 MB of blanks": lambda: honest + b" " * (17 << 20),
        "a million members": lambda: json.dumps({str(n): n for n in range(400_000)}).encode(),
        "weak: not ids": with_meta(weak="all"),
        "weak: beyond the classes": with_meta(weak=[0, 99]),
        "weak: negative": with_meta(weak=[-1]),
        "weak: truth": with_meta(weak=[True]),
        "size: huge": with_meta(size=[10**30, 10**30]),
        "size: negative": with_meta(size=[-32, -48]),
        "size: text": with_meta(size="32x48"),
        "key: another": with_meta(key="someone/else"),
        "key: number": with_meta(key=7),
        "key: missing": json.dumps({k: v for k, v in meta.items() if k != "key"}).encode(),
    }


def _texts(one: str) -> Iterator[Case]:
    """Indexes that are sealed and cannot be true."""
    index = one.replace(".tar", ".index.jsonl")
    row = '{"key":"aachen/x","offset":0,"members":{"jpg":10,"json":10}}\n'
    texts = {
        "member of 2^62 bytes": row.replace("10", str(1 << 62)),
        "members of 2 GB each": "".join(row.replace('"jpg":10', f'"jpg":{(1 << 31) - 1}') for _ in range(3)),
        "one member of 2 GB": row.replace('"jpg":10', f'"jpg":{(1 << 31) - 1}') * 2,
        "negative": row.replace("10", "-10"),
        "offset beyond the file": row.replace('"offset":0', '"offset":1099511627776'),
        "fractions": row.replace("10", "10.5"),
        "nested": '{"key":' + "[" * 100_000 + "\n",
        "digits": '{"key":"a","offset":' + "9" * 100_000 + "}\n",
        "a key that climbs": row.replace("aachen/x", "../../x"),
        "a key with a control character": row.replace("aachen/x", "a\\u0000b"),
        "half a surrogate pair": row.replace("aachen/x", "a\\ud800"),
        "key twice": row.replace('"key":', '"key":"b","key":'),
        "empty lines": "\n" * 2,
        "nothing": "",
        "a lone number": "7\n7\n",
    }
    for what, text in texts.items():

        def damage(folder: Path, text: str = text) -> None:
            (folder / index).unlink()
            (folder / index).write_text(text)
            reseal(folder)

        yield Case(f"bomb/index/{what}", "bombs and absurd headers: index", "jpeg", damage, (index,), True, bomb=True)

    def beyond(folder: Path) -> None:
        """Index and manifest agree on a tar of many GB; the file is sparse and really has them."""
        manifest = load(folder)
        for record in manifest["splits"]["train"]["scales"]["1"]["shards"]:
            if record["path"] == one:
                record["bytes"] = 1 << 40
        store(folder, manifest)

    def many(folder: Path) -> None:
        """Counts that agree with each other: an order of so many samples would take 800 GB."""
        manifest = load(folder)
        train = manifest["splits"]["train"]
        train["samples"] = 10**11
        for part in train["scales"].values():
            part["groups"] = [10**11]
            part["shards"] = [{**record, "samples": 10**11} for record in part["shards"][:1]]
        store(folder, manifest)
        for meta in folder.glob("train/*/*.zarr/*/offsets/zarr.json"):
            text = json.dumps({**json.loads(meta.read_text()), "shape": [10**11 + 1]})
            meta.unlink()
            meta.write_text(text)
        reseal(folder)

    for base in ("jpeg", "zarr"):
        name = f"bomb/manifest/10^11 samples/{base}"
        yield Case(name, "bombs and absurd headers: index", base, many, ("manifest.json",), sealed=True, bomb=True)
    yield Case("bomb/manifest/a shard of a TB", "bombs and absurd headers: index", "jpeg", beyond, (one,), bomb=True)


def _pickles(one: str) -> Iterator[Case]:
    """Members that plain webdataset unpacks as pickles by their suffix."""
    for suffix in ("pyd", "pickle", "pth", "npy"):

        def damage(folder: Path, suffix: str = suffix) -> None:
            parts = parts_of((folder / one).read_bytes())
            trap = Part(f"{parts[0].key}.{suffix}".encode(), pickle.dumps(Trap()))
            write_sealed(folder, one, [*parts[:1], trap, *parts[1:]])

        yield Case(f"bomb/pickle/{suffix}", "a pickle among the members", "jpeg", damage, (), sealed=True, bomb=True)
