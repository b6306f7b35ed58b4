"""Which source a part belongs to, and which shard sets belong to a source."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import SettingsError, UserError
from tests.train.conftest import recipe
from train.mixture import Turns, check, named_paths, of_source, turns


def mixture(*shares: float, **keys: Any) -> dict[str, Any]:
    """A [mixture] of sources a, b, c, ... with these shares."""
    return {"sources": [{"name": "abcdefgh"[i], "share": share} for i, share in enumerate(shares)], **keys}


def cosine(**sections: Any) -> Any:
    """A recipe that may have image sources."""
    return recipe(**{**sections, "model": {"head": "cosine", **sections.get("model", {})}})


# --- turns -------------------------------------------------------------------------------------------------------

QUOTAS = st.lists(st.integers(1, 40), min_size=2, max_size=6).map(tuple)


@given(QUOTAS, st.integers(0, 1000))
def test_quotas_are_exact_over_any_window_of_one_cycle(quotas: tuple[int, ...], start: int) -> None:
    sequence, length = Turns(quotas), sum(quotas)
    window = Counter(sequence.of(part) for part in range(start, start + length))
    assert tuple(window[source] for source in range(len(quotas))) == quotas


@given(QUOTAS)
def test_no_source_is_a_whole_part_off(quotas: tuple[int, ...]) -> None:
    """Tijdeman's bound: after n parts each source is within 1 - 1 / (2 k - 2) of n times its share."""
    sequence, counts, length = Turns(quotas), [0] * len(quotas), sum(quotas)
    bound = 1 - Fraction(1, 2 * len(quotas) - 2)
    for part in range(length):
        counts[sequence.of(part)] += 1
        for count, quota in zip(counts, quotas, strict=True):
            assert abs(count - Fraction(quota * (part + 1), length)) <= bound


@given(QUOTAS, st.integers(0, 300))
def test_what_came_before_a_part_is_what_was_counted(quotas: tuple[int, ...], part: int) -> None:
    sequence = Turns(quotas)
    seen = Counter(sequence.of(earlier) for earlier in range(part))
    assert sequence.before(part).tolist() == [seen[source] for source in range(len(quotas))]


def test_far_seeks_take_no_time() -> None:
    far = 3 * 10**14
    assert Turns((1, 2)).before(3 * far).tolist() == [far, 2 * far]
    assert Turns((1, 2)).of(3 * far) == Turns((1, 2)).of(0)


@pytest.mark.parametrize(
    ("shares", "quotas"),
    [((4, 4), (1, 1)), ((3, 3, 2), (3, 3, 2)), ((0.7, 0.3), (7, 3)), ((1 / 3, 1), (1, 3)), ((0.25, 1000), (1, 4000))],
)
def test_shares_become_a_cycle(shares: tuple[float, ...], quotas: tuple[int, ...]) -> None:
    found = turns(recipe(mixture=mixture(*shares)).mixture)  # type: ignore[arg-type]
    assert found.quotas == quotas


def test_four_to_four_alternates() -> None:
    assert [Turns((1, 1)).of(part) for part in range(6)] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("shares", [(1000, 0.1), (1e-6, 1), (0.1234, 0.4321, 0.7773), (1e-5, 1e-5)])
def test_shares_without_a_short_cycle_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match=r"the shares a .* more than 10,000 parts to come out even"):
        turns(recipe(mixture=mixture(*shares)).mixture)  # type: ignore[arg-type]


# --- what a source sees of the recipe ----------------------------------------------------------------------------


def test_a_source_has_its_own_crop_rescale_split_and_seed() -> None:
    sources = [
        {"name": "a", "crop": [32, 64], "split": "extra"},
        {"name": "b", "rescale": [0.5, 2.0]},
    ]
    whole = recipe(
        data={"mode": "rescale", "scales": ["1"]},
        augment={"crop": [16, 16], "rescale": [1.0, 1.0]},
        mixture={"sources": sources},
    )
    one, two = of_source(whole, 0), of_source(whole, 1)
    assert (one.augment.crop, one.augment.rescale, one.data.split) == ((32, 64), (1.0, 1.0), "extra")
    assert (two.augment.crop, two.augment.rescale, two.data.split) == ((16, 16), (0.5, 2.0), "train")
    assert len({whole.loop.seed, one.loop.seed, two.loop.seed}) == 3
    other = whole.model_copy(update={"loop": whole.loop.model_copy(update={"seed": 5})})
    assert of_source(other, 0).loop.seed != one.loop.seed


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "parts", "ranks", "message"),
    [
        ({"batch": 6}, 4, 1, r"loop.batch = 6: expected a multiple of mixture.parts = 4"),
        ({"batch": 8, "accumulate": 1}, 2, 1, r"mixture.parts = 2: expected it to divide 1 processes x 1"),
        ({"batch": 8, "accumulate": 2}, 4, 1, r"set loop.accumulate"),
        ({"batch": 8, "accumulate": 2}, 2, 3, r"3 processes x 2"),
        ({"batch": 8, "accumulate": 4}, 2, 1, None),
        ({"batch": 8, "accumulate": 1}, 2, 4, None),
        ({"batch": 8, "accumulate": 1}, 1, 2, None),
    ],
)
def test_parts_ranks_and_accumulation(loop: dict[str, int], parts: int, ranks: int, message: str | None) -> None:
    given = recipe(loop=loop, mixture=mixture(1, 1, parts=parts))
    if message is None:
        check(given, ranks)
        return
    with pytest.raises(SettingsError, match=message) as caught:
        check(given, ranks)
    assert "\n" not in str(caught.value)


def test_what_a_mixture_cannot_do_is_one_line() -> None:
    images = mixture(1, 1)
    images["sources"][1]["labels"] = "image"
    with pytest.raises(SettingsError, match=r"source 'b' has labels = \"image\": expected model.head = \"cosine\""):
        check(recipe(mixture=images), 1)
    with pytest.raises(SettingsError, match=r'"embedding" has no mixtures'):
        check(recipe(mixture=mixture(1, 1), model={"head": "embedding"}), 1)
    resized = mixture(1, 1)
    resized["sources"][0]["rescale"] = [0.5, 1.0]
    with pytest.raises(SettingsError, match=r"source 'a' has rescale: expected data.mode = \"rescale\""):
        check(recipe(mixture=resized), 1)
    check(recipe(), 3)  # no mixture, nothing to check


# --- --shards ----------------------------------------------------------------------------------------------------


def test_names_gather_their_folders(tmp_path: Path) -> None:
    given = recipe(mixture=mixture(1, 1))
    found = named_paths(["b=x", "a=y", "b=odd=name/z"], given)
    assert found == {"a": (Path("y"),), "b": (Path("x"), Path("odd=name/z"))}
    assert list(found) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=x"], "source 'b' of recipe tiny has no shard set: add --shards b=DIR"),
        (["a=x", "b=y", "z"], "--shards z: recipe tiny has sources a, b: expected NAME=DIR"),
        (["a=x", "b=", "b=y"], "--shards b=: recipe tiny has sources a, b: expected NAME=DIR"),
        (["a=x", "bb=y"], "--shards bb=y: recipe tiny has no source 'bb'; did you mean 'b'?"),
        (["a=x", "./b=y"], "--shards ./b=y: recipe tiny has sources a, b: expected NAME=DIR"),
    ],
)
def test_wrong_names_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        named_paths(words, recipe(mixture=mixture(1, 1)))
    assert str(caught.value) == message


def test_without_a_mixture_a_folder_may_hold_any_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert named_paths(["lr=3", "plain"], recipe()) == {"": (Path("lr=3"), Path("plain"))}
    assert named_paths(["/a/lr=4"], recipe()) == {"": (Path("/a/lr=4"),)}
    with pytest.raises(UserError, match=r"--shards a=x: recipe tiny has no \[mixture\]: expected a folder"):
        named_paths(["a=x"], recipe())
