"""Where shards end: within the limit, by their contents alone, and back in step soon after a change."""

from __future__ import annotations

import hashlib
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.build.journal import Journal
from shards.errors import SettingsError
from shards.shardfile import Blocks, ShardStream, starts_shard
from shards.tar import TAR_END
from tests.fakes import fake_camvid
from tests.prep.builds import run_build, tree

LIMIT = 40_000
Samples = list[tuple[str, int]]  # (key, bytes of its blocks)
sizes = st.integers(1, 24).map(lambda blocks: 512 * blocks)
sequences = st.lists(sizes, min_size=1, max_size=80).map(
    lambda found: [(f"s{number}", size) for number, size in enumerate(found)]
)


def cut(samples: Samples, limit: int = LIMIT) -> list[tuple[tuple[str, int], ...]]:
    """The samples of each shard."""
    runs: list[list[tuple[str, int]]] = []
    length = 0
    for key, size in samples:
        if not runs or starts_shard(key, size, length, limit):
            runs.append([])
            length = 0
        runs[-1].append((key, size))
        length += size
    return [tuple(run) for run in runs]


@given(sequences)
def test_shards_hold_at_most_the_limit_and_all_but_the_last_at_least_half(samples: Samples) -> None:
    runs = cut(samples)
    assert [sample for run in runs for sample in run] == samples
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        length = sum(size for _, size in run)
        assert length + len(TAR_END) <= LIMIT
        if following:
            assert 2 * length >= LIMIT or length + following[0][1] + len(TAR_END) > LIMIT


def test_a_sample_larger_than_the_limit_has_a_shard_of_its_own() -> None:
    assert [len(run) for run in cut([("a", 512), ("b", 9 * LIMIT), ("c", 512), ("d", 512)])] == [1, 1, 2]


@given(st.text(min_size=1, max_size=9), sizes, st.integers(LIMIT // 2, LIMIT))
def test_the_draw_is_the_keys_hash_in_proportion_to_the_bytes(key: str, size: int, length: int) -> None:
    """Worked out in fractions, from the docstring."""
    drawn = Fraction(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16), 1 << 64)
    want = length + size + 1024 > LIMIT or drawn < min(Fraction(size * 8, LIMIT), Fraction(1, 2))
    assert starts_shard(key, size, length, LIMIT) is want


def test_half_is_the_least() -> None:
    keys = [f"k{n}" for n in range(400)]
    assert not any(starts_shard(key, 512, LIMIT // 2 - 512, LIMIT) for key in keys)
    assert any(starts_shard(key, 512, LIMIT // 2, LIMIT) for key in keys)


def edited(samples: Samples, draw: random.Random) -> Samples:
    """One sample added, removed or changed in size (or not even that)."""
    at, what = draw.randrange(len(samples)), draw.choice(("add", "remove", "change"))
    if what == "add":
        return [*samples[:at], (f"new{draw.random()}", 512 * draw.randint(1, 24)), *samples[at:]]
    if what == "remove":
        return [*samples[:at], *samples[at + 1 :]]
    return [*samples[:at], (samples[at][0], 512 * draw.randint(1, 24)), *samples[at + 1 :]]


def long_sequence(draw: random.Random, limit: int) -> Samples:
    """Samples for about 100 shards."""
    return [(f"frame{n:06d}", 512 * draw.randint(1, 24)) for n in range(100 * limit // (10 * 1024))]


@pytest.mark.parametrize(("limit", "mean", "most"), [(60_000, 3.5, 12), (300_000, 2.5, 8), (900_000, 1.6, 4)])
def test_one_change_leaves_all_but_a_few_shards_as_they_were(limit: int, mean: float, most: int) -> None:
    """Shards of about 6, 30 and 90 samples, 100 of them; the mean of new ones, and the 95th percentile."""
    draw = random.Random(7)
    samples = long_sequence(draw, limit)
    before = set(cut(samples, limit))
    new = sorted(sum(run not in before for run in cut(edited(samples, draw), limit)) for _ in range(80))
    assert len(before) > 80
    assert sum(new) / len(new) < mean
    assert new[76] <= most


def test_large_samples_of_one_size_come_back_into_step() -> None:
    """A sample as large as an eighth of the limit may start a shard or not; else all would hold five for ever."""
    samples = [(f"f{number}", 512 * 20) for number in range(800)]
    before = set(cut(samples, 8 * 512 * 20))
    assert len(before) > 100
    shares = [len(set(cut(samples[:n] + samples[n + 1 :], 8 * 512 * 20)) - before) for n in range(0, 400, 20)]
    assert sum(shares) / len(shares) < 5


def test_shards_are_five_eighths_full_in_the_mean() -> None:
    draw = random.Random(3)
    lengths = [sum(size for _, size in run) for run in cut(long_sequence(draw, 900_000), 900_000)[:-1]]
    assert 0.58 < sum(lengths) / len(lengths) / 900_000 < 0.67


@given(sequences, st.data())
def test_a_stream_that_is_resumed_anywhere_cuts_alike(samples: Samples, data: st.DataObject) -> None:
    import tempfile

    stop = data.draw(st.integers(0, len(samples)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = ShardStream(folder, "val/1", LIMIT)
        for number, (key, size) in enumerate(samples):
            if number == stop and (position := stream.position()):
                stream.abandon()
                closed = stream.take_closed()
                stream = ShardStream.resume(folder, position, LIMIT)
                stream._closed = closed
            stream.add(key, Blocks(bytes(size), {}))
        stream.finish()
        assert [record.samples for record in stream.take_closed()] == [len(run) for run in cut(samples)]


@pytest.mark.parametrize(("rule", "says"), [("shard cut", "by content"), ("sample checksums", "crc32")])
def test_a_build_that_began_under_an_older_rule_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, says: str
) -> None:
    """Its shards so far end where their bytes ran out, or say less: going on would mix two rules in one set."""
    root, out = fake_camvid(tmp_path / "cv", {"val": 9}), tmp_path / "out"
    create = Journal.create

    def older(path: Path, head: dict[str, dict[str, object]]) -> Journal:
        libraries = {name: value for name, value in head["libraries"].items() if name != rule}
        return create(path, head | {"libraries": libraries})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "create", older)
        patch.setattr("prep.build.writer.ChunkWriter.write", stop)
        with pytest.raises(KeyboardInterrupt):
            run_build("camvid", root, out)
    before = tree(out)
    with pytest.raises(SettingsError, match=rf"an unfinished build .* differs in {rule} none -> {says}.*--fresh"):
        run_build("camvid", root, out)
    assert tree(out) == before
    run_build("camvid", root, out, fresh=True)
