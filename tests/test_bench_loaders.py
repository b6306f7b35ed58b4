"""The bench of loaders: its rounds, medians and verdicts, with rivals that are made up; nothing is installed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards.codec import encode_hard
from shards.codec.image import ImageFormat, encode_image
from shards.tar import TAR_END, sample_blocks
from tests.bench.loaders import peers, tables
from tests.bench.loaders.contests import CONTESTS, Contest, Rival
from tests.bench.loaders.members import encoded
from tests.bench.loaders.peers import PEERS, Peer, install
from tests.bench.loaders.rounds import RunFailedError, Scores, disagreements, play
from tests.bench.loaders.runner import measure, window
from tests.bench.loaders.work import Decode, Job, label_sum, stack

OURS2, OURS3 = Rival("ours", "fast", "threads=2", "segshards"), Rival("ours", "fast", "threads=3", "segshards")
A2, A3, B = Rival("a", "fast", "workers=2", "A"), Rival("a", "fast", "workers=3", "A"), Rival("b", "fast", "x=1", "B")
RATES = {
    OURS2: [90.0, 100.0, 60.0, 110.0],
    OURS3: [95.0, 300.0, 250.0, 120.0],
    A2: [50.0] * 4,
    A3: [40.0] * 4,
    B: [70.0],
}


def contest(name: str = "fast", **more: Any) -> Contest:
    return Contest(name, name.title(), "streets", (OURS2, OURS3, A2, A3, B), "segshards", 1.5, **more)


def finding(rate: float, samples: int = 32, checksum: float = 7.0) -> dict[str, Any]:
    memory = {"0.1": 110.0, "0.5": 120.0, "1.0": 130.0}
    return {
        "rate": rate,
        "cpu_ms": 2.0,
        "first": 1 / rate,
        "samples": samples,
        "checksum": checksum,
        "memory": memory,
    } | {
        "batch_mb": 10.0,
        "versions": {"numpy": "9.9"},
    }


def job(**more: Any) -> Job:
    plain = {"task": "read", "peer": "ours", "mode": "fast", "shards": "", "data": "", "setting": "threads=2"}
    return Job(**{**plain, "batch": 4, "classes": 5, **more})


class Machine:
    """Runs rivals by a table of rates and remembers who ran when."""

    def __init__(self, rates: dict[Rival, list[float]], failing: tuple[Rival, ...] = ()) -> None:
        self.rates, self.failing = rates, failing
        self.log: list[tuple[str, Rival]] = []

    def __call__(self, what: Contest, rival: Rival) -> dict[str, Any]:
        if rival in self.failing:
            raise RunFailedError("exit code 139: gone")
        before = sum(1 for name, other in self.log if other == rival and name == what.name)
        self.log.append((what.name, rival))
        return finding(self.rates[rival][min(before, len(self.rates[rival]) - 1)])


def test_every_setting_runs_in_the_first_round_and_the_best_of_it_in_all() -> None:
    machine = Machine(RATES)
    play([contest()], 4, machine, lambda line: None)
    ran = [rival for _, rival in machine.log]
    assert {rival: ran.count(rival) for rival in RATES} == {OURS2: 1, OURS3: 4, A2: 4, A3: 1, B: 4}


def test_rounds_are_interleaved_and_begin_with_another_rival() -> None:
    machine = Machine({rival: [100.0] for rival in RATES})
    play([contest("one"), contest("two")], 3, machine, lambda line: None)
    ran = [entry for entry in machine.log if entry[1].peer != "ours" or entry[1] == OURS2]
    rounds = [ran[:8], ran[8:14], ran[14:]]
    assert [[name for name, _ in part] for part in rounds] == [["one"] * 4 + ["two"] * 4] + [
        ["one"] * 3 + ["two"] * 3
    ] * 2
    later = list(machine.log[10:])
    assert {rival for _, rival in later[:3]} == {OURS2, A2, B}
    assert later[0][1] != later[6][1]


def test_rates_are_medians_and_the_ratio_is_against_the_best_peer() -> None:
    one = contest()
    scores = play([one], 4, Machine(RATES), lambda line: None)
    assert scores.value(one, OURS3) == 185.0  # neither mean nor largest
    assert scores.value(one, B) == 70.0
    assert tables.ratio_of(one, scores) == pytest.approx(185 / 70)
    table = tables.contest_table(one, scores)
    assert "**ours / best: 2.64** (target 1.5: met)" in table
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["segshards", "B", "A"]  # by falling rate, one row each


def test_a_missed_target_says_so() -> None:
    scores = play([contest()], 1, Machine({**RATES, B: [80.0]}), lambda line: None)
    assert "**ours / best: 1.19** (target 1.5: MISSED)" in tables.contest_table(contest(), scores)


def test_one_rival_can_be_named_apart_from_the_best() -> None:
    one = contest(versus="A")
    assert "; ours / A: 1.9" in tables.contest_table(one, play([one], 1, Machine(RATES), lambda line: None))
    alone = tables.contest_table(one, play([one], 1, Machine(RATES, (A2, A3)), lambda line: None))
    assert "ours / best: 1.36" in alone
    assert "ours / A" not in alone


def test_our_other_ways_are_no_peers() -> None:
    dense = Rival("ours", "soft-dense", "threads=2", "segshards, made dense")
    one = Contest("soft", "Soft", "streets", (OURS2, dense, B), "segshards", 10.0)
    scores = play([one], 1, Machine({OURS2: [100.0], dense: [90.0], B: [50.0]}), lambda line: None)
    assert tables.ratio_of(one, scores) == 2.0
    assert tables.ratio_of(one, play([one], 1, Machine(RATES, (B, dense)), lambda line: None)) is None


def test_the_first_batch_is_ranked_by_seconds() -> None:
    one = contest(first=True)
    scores = play([one], 2, Machine(RATES), lambda line: None)
    best = scores.best(one)
    assert best["A"] == A2  # the faster rate is the shorter time
    table = tables.contest_table(one, scores)
    assert table.index("| segshards |") < table.index("| B |") < table.index("| A |")
    assert table.endswith("s (target within 1 s: met)")
    late = play([one], 1, Machine({rival: [values[0] / 100] for rival, values in RATES.items()}), lambda line: None)
    assert tables.contest_table(one, late).endswith("s (target within 1 s: MISSED)")


@pytest.mark.parametrize(("most", "says"), [(320.0, "at most 299 MB"), (321.0, "at most 300 MB")])
def test_memory_has_a_verdict(most: float, says: str) -> None:
    def run(what: Contest, rival: Rival) -> dict[str, Any]:
        marks = {"0.1": 100.0, "0.5": most, "1.0": 200.0} if rival.peer == "ours" else {"1.0": 9000.0}
        return {**Machine(RATES)(what, rival), "memory": marks, "batch_mb": 21.0}

    verdict = "met" if most < 321 else "MISSED"
    table = tables.memory_table(contest(), play([contest()], 1, run, lambda line: None))
    assert table.endswith(f"ours: {says} beyond a batch (target under 300 MB: {verdict})")


def test_borrowed_settings_hold_from_the_first_round() -> None:
    machine = Machine(RATES)
    play([contest("fast"), contest("raw", borrows="fast")], 1, machine, lambda line: None)
    assert {rival for name, rival in machine.log if name == "raw"} == {OURS3, A2, B}


def test_a_failing_rival_is_loud_and_the_rest_goes_on() -> None:
    said: list[str] = []
    machine = Machine(RATES, failing=(A2,))
    scores = play([contest()], 3, machine, said.append)
    assert scores.failures == {("fast", A2): "exit code 139: gone"}
    assert [line for line in said if "FAILED" in line] == ["FAILED: A (workers=2) in fast: exit code 139: gone"]
    assert scores.best(contest())["A"] == A3
    assert len(scores.runs["fast", A3]) == 3


def test_what_fails_later_counts_no_longer() -> None:
    machine = Machine(RATES)

    def run(what: Contest, rival: Rival) -> dict[str, Any]:
        machine.failing = (A2,) if ("fast", B) in machine.log else ()
        return machine(what, rival)

    scores = play([contest()], 3, run, lambda line: None)
    assert set(scores.best(contest())) == {"segshards", "A", "B"}
    assert ("fast", A2) not in scores.runs


def test_an_absent_peer_takes_no_part() -> None:
    machine = Machine(RATES)
    play([contest()], 2, machine, lambda line: None, absent=["a"])
    assert {rival.peer for _, rival in machine.log} == {"ours", "b"}


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(
            command, len(calls) - 1, "", "WARNING: slow\nERROR: No matching distribution\n"
        )

    monkeypatch.setattr(peers, "BENCH", tmp_path)
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    peer = Peer("grain", "Grain", ("threads=2",))
    assert install(peer) == "ERROR: No matching distribution"
    assert calls[1][0].startswith(str(tmp_path))  # pip of its own environment, never of this one
    assert not (peer.home / "installed").exists()


def test_unequal_work_is_found() -> None:
    one, scores = contest(), Scores()
    scores.runs = {
        ("fast", OURS2): [finding(1)],
        ("fast", A2): [finding(1, samples=31)],
        ("fast", B): [finding(1, 32, 8)],
    }
    found = disagreements(one, scores)
    assert len(found) == 2
    assert "31 samples" in found[0]
    assert "label sum 8" in found[1]
    scores.runs = {("fast", OURS2): [finding(1)], ("fast", A2): [finding(1, checksum=7.0000001)]}
    assert disagreements(one, scores) == []


def test_every_contest_has_all_peers_pinned() -> None:
    for peer in PEERS[1:]:
        lines = [line for line in peer.requirements.read_text().splitlines() if line[0] not in "-#"]
        assert lines
        assert all("==" in line for line in lines)
    for one in CONTESTS:
        assert one.base in {rival.label for rival in one.rivals}
        if one.name != "quarter":
            assert {rival.peer for rival in one.rivals} >= {peer.name for peer in PEERS}


# --- the runner -------------------------------------------------------------------------------------------------------


def test_the_clock_runs_while_all_workers_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert window(26) == (4, 22)
    assert window(14) == (4, 10)
    assert window(9) == (1, 9)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def batches() -> Iterator[Any]:
        for number in range(1, 15):
            now[0] += 0.5 if 4 < number <= 10 else 100.0  # the ends are slow
            yield np.zeros((4, 2, 2, 3), np.uint8), np.full((4, 16, 16), number, np.uint8)

    found = measure(batches(), job(), total=56)
    assert found["rate"] == pytest.approx(24 / 3.0)
    assert (found["samples"], found["checksum"]) == (56, 4 * sum(range(1, 15)))
    assert found["batch_mb"] == pytest.approx(4 * (12 + 256) / 1e6)
    assert list(found["memory"]) == ["0.1", "0.5", "1.0"]


def test_the_first_batch_is_timed_from_the_start_of_the_process() -> None:
    pulled: list[int] = []

    def batches() -> Iterator[Any]:
        for number in range(9):
            pulled.append(number)
            yield [b"ab"], [b"abc"]

    found = measure(batches(), job(first=True, spawned=time.time() - 5), total=9)
    assert 5 <= found["first"] < 6
    assert pulled == [0]


def test_label_sums_agree_however_a_label_is_held() -> None:
    hard = np.random.default_rng(0).integers(0, 5, (2, 64, 64)).astype(np.uint16)
    hard[:, :20] = shards.IGNORE
    assert label_sum(hard) == label_sum(np.where(hard == shards.IGNORE, 255, hard).astype(np.uint8))
    soft = [shards.soften(one, "1/4", "box") for one in hard]
    dense = np.stack([one.dense(5, "keep").transpose(2, 0, 1) for one in soft])
    planes = [one.topk(6) for one in soft]
    sparse = tuple(np.stack(part) for part in zip(*planes, strict=True))
    assert label_sum((*sparse, np.array([one.denominator for one in soft]))) == pytest.approx(label_sum(dense))
    assert 0 < label_sum(dense) < dense[..., ::4, ::4].size
    assert label_sum([b"abc", b"d"]) == 4


def test_all_decoders_do_the_same_work() -> None:
    rng = np.random.default_rng(1)
    image = np.repeat(np.repeat(rng.integers(0, 255, (8, 8, 3)), 8, 0), 8, 1).astype(np.uint8)
    hard = np.repeat(np.repeat(rng.integers(0, 5, (16, 16)), 4, 0), 4, 1).astype(np.uint16)
    hard[:5] = shards.IGNORE
    data = encode_image(image, ImageFormat("jpeg", 95)), encode_hard(hard, 5)
    fast, pil, soft = (Decode(mode, 5)(*data) for mode in ("fast", "pil", "soft"))
    np.testing.assert_array_equal(fast[1], hard)
    np.testing.assert_array_equal(np.where(pil[1] == 255, shards.IGNORE, pil[1].astype(np.uint16)), hard)
    assert np.abs(fast[0].astype(int) - pil[0]).max() <= 2
    np.testing.assert_allclose(
        soft[1], shards.soften(hard, "1/4", "box").dense(5, "keep").transpose(2, 0, 1), atol=1e-6
    )
    images, labels = stack([fast, fast])
    assert (images.shape, labels.shape) == ((2, 64, 64, 3), (2, 64, 64))
    assert Decode("raw", 5)(*data) == data


def test_writers_get_the_very_bytes_of_our_shards(tmp_path: Path) -> None:
    (tmp_path / "train" / "1").mkdir(parents=True)
    members = {"jpg": b"image", "seg.png": b"label", "json": b"{}"}
    blocks = sample_blocks("a", members) + sample_blocks("b", {**members, "jpg": b"other"}) + TAR_END
    (tmp_path / "train" / "1" / "train-1-00000.tar").write_bytes(blocks)
    assert list(encoded(tmp_path)) == [("a", b"image", b"label"), ("b", b"other", b"label")]


def test_a_runner_prints_one_line_of_json() -> None:
    code = (
        "import sys, types; from tests.bench.loaders import runner; peer = types.ModuleType('p'); "
        "peer.DISTRIBUTIONS = ('numpy',); peer.batches = lambda job: iter([([b'a'], [b'bc'])] * 3); "
        "sys.modules['tests.bench.loaders.peer_fake'] = peer; runner.main()"
    )
    request = {**vars(job(peer="fake", batch=1)), "total": 3}
    done = subprocess.run([sys.executable, "-c", code, json.dumps(request)], capture_output=True, text=True, check=True)
    line = next(line for line in io.StringIO(done.stdout) if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    assert (found["samples"], found["checksum"]) == (3, 6.0)
    assert found["versions"]["numpy"] == np.__version__
