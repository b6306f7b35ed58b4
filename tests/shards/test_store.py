"""The local store: files stay open within bounds, in any thread and process, and nothing outside is ever read."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import pickle
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shards
from shards import FormatError, UserError, local
from shards.local import LocalStore
from shards.recent import Recent
from shards.store import open_store
from shards.verify import verify
from tests.shards.build import build, seal_anew

SUM = r"(checksum of the sample|header) differs from the index: damaged"
FILE = "checksum differs from the manifest: damaged"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A set of twelve shards a scale."""
    folder = tmp_path_factory.mktemp("many")
    build(folder, samples=12, per_shard=1)
    return folder


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_recent_keeps_what_was_used_last_within_its_weight():
    recent = Recent(10)
    for name, weight in (("a", 4), ("b", 4), ("c", 2)):
        recent.put(name, name.upper(), weight)
    assert recent.get("a") == "A"
    recent.put("d", "D", 4)  # b was used longest ago
    assert [recent.get(name) for name in "abcd"] == ["A", None, "C", "D"]
    recent.put("d", "E", 1)  # replaced, not added
    recent.put("f", "F", 3)
    assert [recent.get(name) for name in "acdf"] == ["A", "C", "E", "F"]
    recent.put("huge", "H", 11)
    assert recent.get("huge") is None
    assert len(recent) == 4
    assert len(pickle.loads(pickle.dumps(recent))) == 0  # noqa: S301


def test_few_files_stay_open_while_threads_read(many, monkeypatch):
    monkeypatch.setattr(local, "OPEN", Recent(3))
    ds = shards.open(many, split="train", scale="1/2")
    expected = [ds.members(i) for i in range(12)]
    before, most = descriptors(), 0

    def read(seed):
        nonlocal most
        chance = random.Random(seed)
        for _ in range(150):
            i = chance.randrange(12)
            assert ds.members(i) == expected[i]
            most = max(most, descriptors())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert most <= before + 2 * 4 + 4  # at most one file, and one about to be closed, for each thread
    ds.store = ds._reader = None
    gc.collect()
    assert descriptors() <= before - 1


def test_many_stores_keep_no_more_files_open_than_one(many, monkeypatch):
    monkeypatch.setattr(local, "OPEN", Recent(8))
    before = descriptors()
    sets = [shards.open(many, split="train", scale="1/2") for _ in range(6)]
    for ds in sets:
        [ds.members(i) for i in range(12)]
    assert descriptors() <= before + 8
    sets[0].members(5)
    sets.pop()
    del ds
    gc.collect()
    assert (descriptors(), len(local.OPEN)) == (before + 1, 1)  # those of the last set went with it
    sets.clear()
    gc.collect()
    assert (descriptors(), len(local.OPEN)) == (before, 0)


def test_a_file_that_is_dropped_while_it_is_read_stays_open_for_its_reader(many, monkeypatch):
    monkeypatch.setattr(local, "OPEN", Recent(1))
    ds = shards.open(many, split="train", scale="1/2")
    records = ds._reader.part.shards
    opened = ds.store._opened(records[0])
    ds.store._open.put(records[0].path, opened)
    ds.members(1)  # drops it
    assert ds.store._open.get(records[0].path) is None
    assert opened.read(0, records[0].bytes) == (many / records[0].path).read_bytes()


def test_a_warm_sample_costs_one_pread_and_no_open(many, monkeypatch):
    ds = shards.open(many, split="train", scale="1/2")
    for i in range(3):
        ds.members(i)
    calls = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: calls.append("pread") or pread(*given))
    monkeypatch.setattr(os, "open", lambda *given, **more: calls.append("open"))
    for i in (2, 0, 1):
        ds.members(i)
    assert calls == ["pread"] * 3


def test_nothing_is_listed(shard_set, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a folder was listed")

    for name in ("scandir", "listdir", "walk"):
        monkeypatch.setattr(os, name, forbidden)
    monkeypatch.setattr(Path, "iterdir", forbidden)
    ds = shards.open(shard_set, split="train", scale="1/4")
    assert ds[3].key == ds.keys()[3]


def test_a_forked_child_reads_while_threads_of_the_parent_do(many):
    ds = shards.open(many, split="train", scale="1/2")
    expected = [ds.members(i) for i in range(12)]
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            ds.members(random.randrange(12))

    def child():
        os._exit(0 if [ds.members(i) for i in range(12)] == expected else 1)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join(10)
            assert process.exitcode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_store_travels_without_what_it_has_open(many):
    store = open_store(many)
    file = shards.load_manifest(many).files[0]
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert copy.range(file, 2, 5) == store.range(file, 2, 5) == (many / file.path).read_bytes()[2:7]
    assert copy.range(file, file.bytes - 2, 50) == (many / file.path).read_bytes()[-2:]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    build(tmp_path / "set")
    outside = tmp_path / "outside"
    shutil.copytree(tmp_path / "set", outside)
    tar = tmp_path / "set/train/1/train-1-00001.tar"
    ds = shards.open(tmp_path / "set", split="train")
    ds.members(0)  # its folder is known from now on
    tar.unlink()
    tar.symlink_to(outside / "train/1/train-1-00001.tar")
    for opened in (ds, shards.open(tmp_path / "set", split="train")):
        with pytest.raises(FormatError, match=r"train-1-00001\.tar \[city/train_002\]: a link that leaves the folder"):
            opened.members(2)
    shutil.rmtree(tmp_path / "set/train/1-2")
    (tmp_path / "set/train/1-2").symlink_to(outside / "train/1-2")
    with pytest.raises(FormatError, match="a link that leaves the folder"):
        shards.open(tmp_path / "set", split="train", scale="1/2").members(0)
    assert sum("a link that leaves the folder" in problem for problem in verify(tmp_path / "set")) >= 6


def test_links_within_the_folder_are(tmp_path):
    build(tmp_path)
    tar = tmp_path / "train/1/train-1-00001.tar"
    ds = shards.open(tmp_path, split="train")
    expected = [ds.members(i) for i in range(5)]
    tar.rename(tmp_path / "elsewhere.tar")
    tar.symlink_to("../../elsewhere.tar")
    for opened in (ds, shards.open(tmp_path, split="train")):
        assert [opened.members(i) for i in range(5)] == expected


def _circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (Path.unlink, "No such file"),
        (_circle, "cannot be opened"),
        (_pipe, "is no file"),
        (_folder, "is no file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), "bytes found; the manifest has"),
        (lambda path: path.write_bytes(path.read_bytes() + bytes(512)), "bytes found; the manifest has"),
    ],
)
@pytest.mark.parametrize("name", ["train-1-00001.tar", "train-1-00001.index.jsonl"])
def test_files_that_are_not_what_they_were(tmp_path, harm, says, name):
    build(tmp_path)
    harm(tmp_path / "train/1" / name)
    ds = shards.open(tmp_path, split="train")
    with pytest.raises(FormatError, match=name.replace(".", r"\.")) as caught:
        ds.members(2)
    assert says in str(caught.value)
    assert (caught.value.member == "city/train_002") == name.endswith("tar")
    assert any(name in problem and says in problem for problem in verify(tmp_path))


def test_an_index_of_the_right_size_with_other_content(tmp_path):
    build(tmp_path)
    one, other = (tmp_path / f"train/1/train-1-0000{n}" for n in (0, 1))
    for suffix in (".tar", ".index.jsonl"):  # shards swapped with their indexes agree with each other
        a, b = one.with_suffix(suffix), other.with_suffix(suffix)
        first = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(first)
    seen = [str(problem) for problem in verify(tmp_path)]
    assert sum("0000" in problem for problem in seen) >= 2
    with pytest.raises(FormatError, match=r"train-1-0000\d\.(index\.jsonl|tar)"):
        [shards.open(tmp_path, split="train").members(i) for i in (0, 1, 2, 3)]


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [(errno.EMFILE, UserError, "ulimit -n"), (errno.EACCES, FormatError, "change its permissions")],
)
def test_a_sound_file_that_cannot_be_opened_is_not_to_be_built_again(many, monkeypatch, number, kind, remedy):
    opening = os.open

    def failing(path, *given):
        if str(path).endswith(".tar"):
            raise OSError(number, os.strerror(number), str(path))
        return opening(path, *given)

    ds = shards.open(many, split="train")
    ds.keys()
    monkeypatch.setattr(os, "open", failing)
    ds.ahead(range(12))  # says nothing
    with pytest.raises(
        kind, match=rf"train-1-00003\.tar.*cannot be opened \({os.strerror(number)}\).*{remedy}"
    ) as caught:
        ds.members(3)
    assert "again" not in str(caught.value)


def test_a_failing_disk_is_named(many, monkeypatch):
    ds = shards.open(many, split="train", scale="1/2")
    ds.members(0)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(FormatError, match=r"train-1-2-00000\.tar \[city/train_000\]: cannot be read \(Input/output"):
        ds.members(0)


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_a_labelled_split_without_a_label_is_an_error(tmp_path, format, monkeypatch):
    from tests.shards import build as builder

    honest = builder.members

    def without(i, scale, split, key):
        return {s: data for s, data in honest(i, scale, split, key).items() if s != "soft.npz"}

    monkeypatch.setattr(builder, "members", without)
    build(tmp_path, format)
    with pytest.raises(FormatError, match=r"sample city/train_001 \[soft\.npz\]: no label found in a labelled split"):
        shards.open(tmp_path, split="train", scale="1/2")[1]
    assert shards.open(tmp_path, split="test", scale="1/2")[1].soft is None


def test_errors_of_decoding_name_file_sample_and_member(tmp_path):
    build(tmp_path)
    path = tmp_path / "train/1/train-1-00001.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"IDAT", b"IDAX", 1))
    with pytest.raises(FormatError, match=r"train/1/train-1-00001\.tar sample city/train_002 \[png\]"):
        shards.open(tmp_path, split="train", check=False)[2]


@pytest.mark.parametrize(("format", "sums"), [("webdataset", True), ("webdataset", False), ("zarr", False)])
def test_any_flipped_bit_of_a_local_file_is_an_error(tmp_path, format, sums):
    """Also where the image still decodes, naming file and sample; without checksums of samples before the first."""
    copy = tmp_path / "set"
    build(copy, format, sums=sums)
    part = shards.load_manifest(copy).splits["train"].scales["1/2"]
    files = part.shards or [file for file in part.files if "/data/c/" in file.path]
    for file in files:
        path = copy / file.path
        whole = path.read_bytes()
        data = bytearray(whole)
        data[len(data) // 2] ^= 4
        path.write_bytes(bytes(data))
        ds = shards.open(copy, split="train", scale="1/2")
        for _ in range(2):  # it stays an error
            with pytest.raises(FormatError, match=SUM if sums else FILE) as caught:
                [ds[i] for i in range(5)]
            assert caught.value.path == str(path)
            assert "train_00" in caught.value.member or caught.value.member == "key of sample 0"
        travelled = pickle.loads(pickle.dumps(ds))  # noqa: S301
        with pytest.raises(FormatError, match=SUM if sums else FILE):
            [travelled[i] for i in range(5)]
        unchecked = shards.open(copy, split="train", scale="1/2", check=False)
        with contextlib.suppress(FormatError):  # decoders and headers find some
            [unchecked[i] for i in range(5)]
        path.write_bytes(whole)
    assert [shards.open(copy, split="train", scale="1/2").members(i) for i in range(5)]


def test_a_file_is_hashed_once_by_many_threads_and_ahead_by_none(tmp_path, monkeypatch):
    build(tmp_path, samples=12, per_shard=3, sums=False)
    hashed, going, most = [], [], []
    sha256 = local.OpenFile.sha256

    def slow(self):
        hashed.append(Path(self.path).name)
        going.append(1)
        time.sleep(0.02)
        most.append(len(going))
        going.pop()
        return sha256(self)

    monkeypatch.setattr(local.OpenFile, "sha256", slow)
    monkeypatch.setattr(local, "PROOFS", local.Proofs())
    ds = shards.open(tmp_path, split="train", scale="1/2")
    ds.ahead(range(12))
    assert hashed == []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ds.members, [0, 1, 2, 3, 3, 6, 6, 9] * 3))
    assert sorted(hashed) == [f"train-1-2-0000{n}.tar" for n in range(4)]
    assert max(most) > 1  # side by side
    again = shards.open(tmp_path, split="train", scale="1/2")
    [again.members(i) for i in range(4)]
    assert len(hashed) == 4  # once a process, not once a dataset
    other = tmp_path / "train/1-2/train-1-2-00000.tar"
    os.utime(other)
    shards.open(tmp_path, split="train", scale="1/2").members(0)
    assert hashed[4:] == [other.name]  # it may have been replaced


def test_reading_ahead_of_local_files_is_advice(many, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, *given: asked.append((Path(f"/proc/self/fd/{fd}").readlink(), given))
    )
    ds = shards.open(many, split="train", scale="1/2")
    ds.ahead([5, 5, 3])
    ds.ahead([3])  # once a file
    names = [path.name for path, _ in asked]
    assert names == [f"train-1-2-0000{n}{end}" for n in (5, 3) for end in (".index.jsonl", ".tar")]
    assert asked[0][1] == (0, 0, os.POSIX_FADV_WILLNEED)
    empty = LocalStore(tmp_path)
    empty.ahead(shards.load_manifest(many).files)  # there is none: raises nothing


def test_memory_of_a_reader_is_flat(tmp_path):
    """Epochs of a set of 300 shards: what is kept after one is kept after three."""
    import tracemalloc

    from shards.index import encode_index
    from shards.manifest import ScaleSet, Shard
    from shards.tar import TAR_END, IndexEntry, sample_blocks
    from shards.tarset import TarReader
    from tests.shards.build import file_of

    members, records = {"jpg": b"x" * 3000, "json": b"{}"}, []
    for number in range(300):
        blocks = [sample_blocks(f"s{number:03d}k{i}", members) for i in range(4)]
        sizes = {suffix: len(data) for suffix, data in members.items()}
        entries = [IndexEntry(f"s{number:03d}k{i}", i * len(blocks[0]), sizes) for i in range(4)]
        path = tmp_path / f"{number:03d}.tar"
        path.write_bytes(b"".join(blocks) + TAR_END)
        path.with_suffix(".jsonl").write_bytes(encode_index(entries))
        files = [file_of(tmp_path, p) for p in (path, path.with_suffix(".jsonl"))]
        records.append(Shard(**files[0].model_dump(), samples=4, index=files[1]))
    reader = TarReader(open_store(tmp_path), ScaleSet(groups=[4] * 300, shards=records))
    tracemalloc.start()
    kept = []
    for seed in range(3):
        order = list(range(1200))
        random.Random(seed).shuffle(order)
        for i in order:
            assert len(reader.members(i)["jpg"]) == 3000
        kept.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert kept[2] - kept[0] < 20_000
    assert kept[0] < 400_000


def test_a_store_without_keys_is_refused(tmp_path):
    build(tmp_path, "zarr")
    shutil.rmtree(tmp_path / "train/1/train-1.zarr/key")
    seal_anew(tmp_path)
    ds = shards.open(tmp_path, split="train")
    for use in (ds.keys, lambda: ds[0]):
        with pytest.raises(FormatError, match=r"train-1\.zarr: .* names no member 'key'"):
            use()
