"""Checkpoints: what goes in comes out, half a file never shows, nothing odd is accepted."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shards.errors import FormatError
from train import checkpoint
from train.checkpoint import Checkpoint


def example(step: int = 3) -> Checkpoint:
    """A small network after one AdamW step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return Checkpoint(
        model=model.state_dict(),
        optimiser=optimiser.state_dict(),
        step=step,
        recipe={"name": "tiny", "loop": {"steps": 5}},
        classes={"names": ["a", "b"]},
        classes_digest="c" * 64,
        digests=["d" * 64],
        versions={"torch": str(torch.__version__)},
    )


def test_round_trip(tmp_path: Path) -> None:
    path, saved = tmp_path / "checkpoint.pt", example()
    checkpoint.save(path, saved)
    found = checkpoint.load(path)
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("model", "optimiser"):
            assert getattr(found, field.name) == getattr(saved, field.name)
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.5)
    checkpoint.fit(model, found, path)
    checkpoint.fit_optimiser(optimiser, found, path)
    torch.testing.assert_close(model.state_dict(), saved.model, rtol=0, atol=0)
    torch.testing.assert_close(optimiser.state_dict(), saved.optimiser, rtol=0, atol=0)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]  # noqa: PTH208


def test_no_code_is_loaded(tmp_path: Path) -> None:
    """A file with anything but plain values is refused, and the object in it never made."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"format_version": 1, "model": Trap()}, path)
    with pytest.raises(FormatError, match="holds more than tensors and plain values") as caught:
        checkpoint.load(path)
    assert not (tmp_path / "sprung").exists()
    assert "\n" not in str(caught.value)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


SAVED = Path("checkpoint.pt")


@given(cut=st.floats(0, 0.999), data=st.data())
def test_truncated_and_damaged_files(tmp_path_factory: pytest.TempPathFactory, cut: float, data: st.DataObject) -> None:
    """Cut short anywhere: one line that names the file and what to do."""
    path = tmp_path_factory.mktemp("cut") / SAVED
    checkpoint.save(path, example())
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(FormatError, match=r"checkpoint.pt: .*(restore|train again)") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    path, saved = tmp_path_factory.mktemp("flip") / SAVED, example()
    checkpoint.save(path, saved)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    found = None
    with suppress(FormatError):
        found = checkpoint.load(path)
    if found is None:
        return
    torch.testing.assert_close(found.model, saved.model, rtol=0, atol=0)
    torch.testing.assert_close(found.optimiser, saved.optimiser, rtol=0, atol=0)
    assert {**vars(found), "model": 0, "optimiser": 0} == {**vars(saved), "model": 0, "optimiser": 0}


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    path, saved = tmp_path / SAVED, example()
    checkpoint.save(path, saved)
    data = path.read_bytes()
    weight = saved.model["weight"].numpy().tobytes()
    assert data.count(weight) == 1
    path.write_bytes(data.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    with pytest.raises(FormatError, match=r"damaged: the checksum of its part .*data/\d+ differs; restore"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format_version": 2}, "checkpoint format 2, expected 1"),
        ({"step": "3"}, "'step' is missing or not a int"),
        ({"model": None}, "'model' is missing"),
        ({"model": {"weight": 3}}, "something else than tensors"),
        ({"extra": 1}, "unknown parts"),
    ],
)
def test_odd_contents(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    values = {f.name: getattr(example(), f.name) for f in dataclasses.fields(Checkpoint)}
    torch.save({"format_version": 1, **values, **change}, tmp_path / "c.pt")
    with pytest.raises(FormatError, match=match):
        checkpoint.load(tmp_path / "c.pt")


def test_not_a_checkpoint_at_all(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(FormatError, match="not a checkpoint of seg-train"):
        checkpoint.load(tmp_path / "list.pt")
    with pytest.raises(FormatError, match="no checkpoint here"):
        checkpoint.load(tmp_path / "none.pt")


def test_weights_of_another_network(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not fit the model"):
        checkpoint.fit(nn.Linear(4, 2), example(), tmp_path)
    two = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimiser = torch.optim.SGD([{"params": layer.parameters()} for layer in two], lr=1)
    with pytest.raises(FormatError, match="optimiser state does not fit"):
        checkpoint.fit_optimiser(optimiser, example(), tmp_path)


def test_belongs(tmp_path: Path) -> None:
    checkpoint.belongs(example(), "c" * 64, ["d" * 64], tmp_path)
    with pytest.raises(FormatError, match="another class table"):
        checkpoint.belongs(example(), "e" * 64, ["d" * 64], tmp_path)
    with pytest.raises(FormatError, match="other shard sets"):
        checkpoint.belongs(example(), "c" * 64, ["e" * 64], tmp_path)


def test_a_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, example(step=3))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, example(step=4))
    assert checkpoint.load(path).step == 3
