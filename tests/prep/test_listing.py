"""What a plan says of its source: which changes stop a build from going on, and how many samples are bad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prep.build.plan import make_plan
from prep.build.settings import Settings
from prep.raw import RawSample
from tests.prep.toy import ToyReader


@dataclass(frozen=True)
class Given(ToyReader):
    """A reader of the samples that it is given."""

    given: tuple[RawSample, ...] = ()

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        yield from self.given


def plan_of(root: Path, *samples: RawSample):  # type: ignore[no-untyped-def]
    return make_plan(Given(given=samples), Settings("toy", root))  # type: ignore[arg-type]


def test_an_instance_map_and_meta_that_change_are_seen(tmp_path: Path) -> None:
    first = RawSample("x", tmp_path / "x.jpg", instances=tmp_path / "x_inst.png", facts=(1,), meta={"neg": [1]})
    listings = {plan_of(tmp_path, first).listing}
    listings |= {plan_of(tmp_path, replace(first, meta={"neg": [2]})).listing}
    listings |= {plan_of(tmp_path, replace(first, problem="no")).listing}
    (tmp_path / "x_inst.png").write_bytes(b"12345")
    listings |= {plan_of(tmp_path, first).listing}
    assert len(listings) == 4


def test_a_sample_that_is_bad_already_is_counted_once_and_keeps_its_reason(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, RawSample("x", tmp_path / "a.jpg"), RawSample("x", tmp_path / "b.jpg", problem="not to be read")
    )
    assert plan.splits[0].bad == 1
    (chunk,) = plan.chunks()
    assert [sample.problem for sample in chunk.samples] == [None, "not to be read"]
