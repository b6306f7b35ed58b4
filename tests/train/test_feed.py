"""The feed: threads and processes give the same batches; who is chosen; the way to the device; scaled decoding."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import shards
from shards.codec import ImageFormat, decode_image, encode_image
from shards.errors import FormatError, SettingsError
from tests.train.conftest import recipe
from tests.train.test_loop import trainer
from tests.train.toy_stream import CPU, Toy, data_threads, numbers, toy
from train import sources
from train.batch import Batch
from train.feed import Choice, Sender, Timed, batches, choose, speedup, taken
from train.runlog import read_log
from train.sources import open_sources
from train.stream import Stream

# --- the same batches --------------------------------------------------------------------------------------------


def facts(batch: Batch) -> list[object]:
    return [batch.keys, *(tensor.numpy().tobytes() for tensor in (batch.images, batch.ids, batch.weights))]


@pytest.mark.parametrize("mode", ["stored", "rescale"])
def test_threads_and_processes_give_the_same_bytes(shard_set: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.feed.cores", lambda: 2)

    def made(loader: str, workers: int, start: int = 0) -> list[list[object]]:
        rescaled = {"rescale": [0.3, 0.9]} if mode == "rescale" else {}
        data = {"loader": loader, "workers": workers, "mode": mode, "scales": ["1"] if rescaled else ["1", "1/2"]}
        augment = {"crop": [24, 40], "jitter": {"hue": 0.1, "contrast": 0.3}, **rescaled}
        config = recipe(data=data, augment=augment, loop={"steps": 5, "accumulate": 2})
        with batches(Stream(open_sources([shard_set], config), config), CPU, start) as source:
            return [facts(batch) for batch in source]

    alone = made("threads", 0)
    assert len(alone) == 10
    for loader, workers in (("threads", 1), ("threads", 2), ("processes", 2), ("processes", 0)):
        assert made(loader, workers) == alone
    for loader in ("threads", "processes"):
        assert made(loader, 1, 3) == alone[6:]


@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_given_positions_are_made_and_nobody_is_left(loader: str) -> None:
    lists = [[3, 1], [7], [2, 2, 9]]
    with batches(toy(loader=loader), CPU, positions=lists) as source:
        assert source.choice == Choice(loader, 2)
        assert numbers(source) == lists
    with batches(toy(loader=loader), CPU) as source:
        next(source)
    assert data_threads() == []
    assert multiprocessing.active_children() == []


def test_threads_work_ahead_of_the_loop_within_bounds() -> None:
    made: list[int] = []
    stream = toy(work=made.append, steps=100)
    with batches(stream, CPU) as source:
        next(source)
        until = time.monotonic() + 5
        while len(made) < 12 and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.05)
        assert 12 <= len(made) <= 4 + 2 * 4 + 4 + 2 * 2  # one taken, two ahead, a batch's samples and two a thread


@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_the_stream_hears_of_positions_before_they_are_needed(loader: str) -> None:
    stream = toy(loader=loader)
    with batches(stream, CPU) as source:
        assert numbers(source) == [list(range(first, first + 4)) for first in range(0, 24, 4)]
    assert stream.told == [list(range(first, min(first + 16, 24))) for first in (0, 8, 16)]


def test_of_huge_shards_the_stream_hears_bit_by_bit() -> None:
    """Not of a million samples before the first is made."""
    stream = Toy(recipe(data={"workers": 0}, loop={"batch": 4, "steps": 10**7}), reach=10**9)
    with batches(stream, CPU) as source:
        next(source)
    assert stream.told == [list(range(2 * 4096))]


def test_shards_hear_of_samples_in_order(shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "train.sources.announce", lambda sets, indices: told.extend((d.scale, int(i)) for d in sets for i in indices)
    )
    config = recipe(data={"scales": ["1/4"], "labels": "nearest", "window": 1}, loop={"steps": 3})
    stream = Stream(open_sources([shard_set], config), config)
    assert stream.reach == 3  # 11 samples in 4 shards
    with batches(stream, CPU) as source:
        next(source)
    order = [stream.index(position) for position in range(8)]
    assert [index for scale, index in told if scale == "1/4"] == order
    assert [index for scale, index in told if scale == "1"] == order


def test_the_window_is_the_recipes(shard_set: Path) -> None:
    orders = []
    for window in (1, 4):
        config = recipe(data={"window": window})
        stream = Stream(open_sources([shard_set], config), config)
        orders.append([stream.index(position) for position in range(11)])
    assert [index // 3 for index in orders[0]] != sorted(index // 3 for index in orders[0])
    assert all(len({index // 3 for index in orders[0][i : i + 3]}) <= 2 for i in range(9))  # one shard after the other
    assert orders[1] != orders[0]
    config = recipe(data={"run": 1})
    stream = Stream(open_sources([shard_set], config), config)
    order = stream.sources.order(config.loop.seed, 0, 4, 1)
    assert [stream.index(position) for position in range(11)] == order.tolist() != orders[1]
    assert recipe(data={"run": 4}).to_dict() == recipe().to_dict() != config.to_dict()
    assert recipe().to_dict()["data"]["window"] == 16  # stored always: an old run without it has the first order
    assert recipe(data={"window": 1}).to_dict()["data"]["window"] == 1


# --- threads or processes ----------------------------------------------------------------------------------------


def test_auto_takes_threads_where_they_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.feed.cores", lambda: 2)
    for found, loader in ((1.7, "threads"), (1.5, "processes"), (0.0, "processes")):
        with monkeypatch.context() as patch:
            patch.setattr("train.feed.speedup", lambda *args, found=found: found)
            with batches(toy(loader="auto"), CPU) as source:
                assert source.choice == Choice(loader, 2, found)
                assert str(source.choice) == f"data: 2 {loader} (threads: {found:.1f} times as fast as one)"
    assert choose(toy(0, "auto"), [[0]]) == Choice("threads", 0)
    assert choose(toy(9, "processes"), [[0]]) == Choice("processes", 2)


def test_a_trial_tells_whether_threads_hold_each_other_up() -> None:
    """Tried again where a busy machine wakes its threads too late."""
    gil = threading.Lock()  # in truth the interpreter's own

    def holds(position: int) -> None:
        with gil:
            time.sleep(0.03)

    assert any(speedup(toy(work=lambda position: time.sleep(0.03)), range(6), 2) > 1.6 for _ in range(5))
    assert any(speedup(toy(work=holds), range(6), 2) < 1.3 for _ in range(5))
    assert speedup(toy(), [], 2) == 0


def test_a_trial_that_fails_leaves_the_error_to_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.feed.cores", lambda: 2)

    def broken(position: int) -> None:
        if position == 5:
            raise FormatError("shard-00000.tar", "damaged")

    with batches(toy(loader="auto", work=broken), CPU) as source:
        assert numbers([next(source)]) == [[0, 1, 2, 3]]
        with pytest.raises(FormatError, match="damaged"):
            next(source)


def test_the_choice_is_logged_and_may_change_on_resume(shard_set: Path, tmp_path: Path) -> None:
    config = recipe(data={"loader": "threads", "workers": 1}, loop={"steps": 2})
    trainer(shard_set, tmp_path / "run", config).run()
    assert read_log(tmp_path / "run")[0] == {
        "step": 0, "feed": {"loader": "threads", "workers": 1, "speedup": None},
    }  # fmt: skip
    assert "loader" not in recipe().to_dict()["data"]
    trainer(shard_set, tmp_path / "run", recipe(data={"loader": "processes"}, loop={"steps": 2}), resume=True)


# --- to the device -----------------------------------------------------------------------------------------------


def test_a_batch_waits_for_its_arrival_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which calls are made, by a make-believe CUDA: copied on a stream of its own, awaited by the one that computes."""
    said: list[str] = []

    class FakeStream:
        def __init__(self, name: object) -> None:
            self.name = name

        def record_event(self) -> str:
            said.append("recorded")
            return "arrival"

        def wait_event(self, event: str) -> None:
            said.append(f"{self.name} waits for {event}")

        def __enter__(self) -> None:
            said.append("side stream")

        def __exit__(self, *args: object) -> None:
            said.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: FakeStream("device"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("main"))
    monkeypatch.setattr(Batch, "pin_memory", lambda self: said.append("pinned") or self)
    monkeypatch.setattr(Batch, "to", lambda self, device: said.append(f"to {device}") or self)
    kept: list[int] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append(self.numel()))
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), ("a",))
    sent = Sender(torch.device("cuda")).send(batch)
    assert said == ["side stream", "side stream", "pinned", "to cuda", "recorded", "back", "back"]
    assert taken(sent) is batch
    assert said[-1] == "main waits for arrival"
    assert kept == [12, 4, 4]


def test_the_clock_counts_waiting() -> None:
    class Slow:
        def __next__(self) -> str:
            time.sleep(0.05)
            return "batch"

    timed = Timed(Slow())  # type: ignore[arg-type]
    assert timed.next() == "batch"
    time.sleep(0.05)
    seconds, waited = timed.lap()
    assert 0.05 <= waited <= seconds - 0.05
    assert timed.lap()[1] == 0


# --- scaled decoding ---------------------------------------------------------------------------------------------


def test_scaled_decoding_is_asked_for_and_changes_the_image_alone(
    shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws, keys and labels; the image comes from 1/2 of its size where it shrinks to that or less."""
    members = shards.ShardDataset.members

    def as_jpeg(self: shards.ShardDataset, i: int) -> dict[str, bytes]:
        found = members(self, i)
        pixels = decode_image(found.pop("png"))
        return {"jpg": encode_image(pixels, ImageFormat("jpeg", 95)), **found}

    def stream(scaled: bool, low: float, high: float) -> Stream:
        data = {"mode": "rescale", "scales": ["1"], **({"scaled_decode": True} if scaled else {})}
        config = recipe(data=data, augment={"rescale": [low, high], "crop": [32, 48]})
        return Stream(open_sources([shard_set], config), config)

    whole = [stream(False, 0.3, 0.5).item(position) for position in range(4)]
    png = [stream(True, 0.3, 0.5).item(position) for position in range(4)]
    monkeypatch.setattr(shards.ShardDataset, "members", as_jpeg)
    asked: list[tuple[int, ...]] = []
    decode = sources.decode_image_scaled
    monkeypatch.setattr(
        sources, "decode_image_scaled", lambda *args: asked.append((found := decode(*args)).shape) or found
    )
    small = [stream(True, 0.3, 0.5).item(position) for position in range(4)]
    assert set(asked) == {(32, 48, 3)}
    for one, same, other in zip(whole, png, small, strict=True):
        assert one.key == same.key == other.key
        assert np.array_equal(one.image, same.image)  # a PNG has no scales
        assert np.array_equal(one.targets.base, other.targets.base)
        assert np.array_equal(one.targets.weights, other.targets.weights)
        apart = np.abs(one.image.astype(float) - other.image)
        assert 0 < apart.mean() < 12
    stream(True, 0.51, 0.9).item(0)
    assert asked[-1] == (64, 96, 3)
    with pytest.raises(SettingsError, match=r"scaled_decode = true: expected data.mode = \"rescale\""):
        recipe(data={"scaled_decode": True})
    assert "scaled_decode" not in recipe().to_dict()["data"]


def test_a_scaled_image_must_fit_its_label(shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = shards.ShardDataset.members
    other = encode_image(np.zeros((64, 80, 3), np.uint8), ImageFormat("jpeg", 95))
    monkeypatch.setattr(
        shards.ShardDataset,
        "members",
        lambda self, i: {**{k: v for k, v in members(self, i).items() if k != "png"}, "jpg": other},
    )
    data = {"mode": "rescale", "scales": ["1"], "scaled_decode": True}
    config = recipe(data=data, augment={"rescale": [0.3, 0.5], "crop": [32, 48]})
    with pytest.raises(FormatError, match=r"an image of \(64, 80\) found for a label of \(64, 96\)"):
        Stream(open_sources([shard_set], config), config).item(0)
