"""What is compared with what: each contest is one table, and runs the same work for every rival in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.loaders.peers import BY_NAME, OURS, PEERS

TRAINER = "trainer"


@dataclass(frozen=True)
class Rival:
    """One way to do a contest's work.

    Args:
        peer: its name.
        mode: see `work.Decode`.
        setting: "workers=2", "threads=3", ...
        label: as tables name it, without the setting.
    """

    peer: str
    mode: str
    setting: str
    label: str


@dataclass(frozen=True)
class Contest:
    """A table.

    Args:
        name: for --only and the JSON.
        title: over the table.
        material: "streets", "photos", "camvid" or "thousand".
        rivals: all ways, each with all its settings.
        base: the label whose rate is divided by the best of the others ("ours / best").
        target: what that ratio is to reach; None: nothing was promised.
        first: only the time to the first batch counts.
        borrows: contest whose first round decides on the settings here.
        versus: a label that the base is compared with apart from the best one.
    """

    name: str
    title: str
    material: str
    rivals: tuple[Rival, ...]
    base: str
    target: float | None
    first: bool = False
    borrows: str | None = None
    versus: str | None = None


def everybody(mode: str, ours: Sequence[tuple[str, str]] = ()) -> tuple[Rival, ...]:
    """Every peer in a mode, with all settings; `ours` are pairs (mode, label) that stand in for our own."""
    own = ours or ((mode, BY_NAME[OURS].title),)
    mine = [Rival(OURS, how, setting, label) for how, label in own for setting in BY_NAME[OURS].settings]
    peers = [peer for peer in PEERS if peer.name != OURS]
    return (*mine, *(Rival(peer.name, mode, setting, peer.title) for peer in peers for setting in peer.settings))


def _trainer() -> tuple[Rival, ...]:
    return tuple(Rival(TRAINER, "soft", setting, "segshards, trainer's feed") for setting in ("workers=2", "workers=1"))


def _quarter() -> tuple[Rival, ...]:
    ways = (("soft", "stored scale 1/4"), ("quarter-resized", "full resolution, resized"))
    return tuple(Rival(OURS, mode, setting, label) for mode, label in ways for setting in BY_NAME[OURS].settings)


SOFT = (("soft", "segshards, sparse planes"), ("soft-dense", "segshards, made dense"))
TORCH = "webdataset, torch's one_hot and interpolate"
LITERAL = tuple(Rival("webdataset", "soft-torch", setting, TORCH) for setting in BY_NAME["webdataset"].settings)

CONTESTS = (
    Contest(
        "documented",
        "Decoding as each one's documentation shows it",
        "streets",
        everybody("documented"),
        "segshards",
        1.5,
    ),
    Contest("fast", "The same fast decoder for all", "streets", everybody("fast"), "segshards", 1.0),
    Contest("raw", "Bytes only, nothing decoded", "streets", everybody("raw"), "segshards", None, borrows="fast"),
    Contest(
        "soft",
        "Soft labels at 1/4 as targets: stored, against one-hot planes averaged by the loader",
        "streets",
        (*everybody("soft", SOFT), *_trainer(), *LITERAL),
        "segshards, sparse planes",
        10.0,
        borrows="fast",
        versus=TORCH,
    ),
    Contest("quarter", "Ours at scale 1/4: stored, against resized", "streets", _quarter(), "stored scale 1/4", 5.0),
    Contest(
        "photos-documented",
        "JPEGs of the usual kind (quality 90, 4:2:0), documented decoding",
        "photos",
        everybody("documented"),
        "segshards",
        1.5,
        borrows="documented",
    ),
    Contest(
        "photos-fast", "The same JPEGs, the same decoder", "photos", everybody("fast"), "segshards", 1.0, borrows="fast"
    ),
    Contest(
        "camvid-documented",
        "CamVid (PNG), documented decoding",
        "camvid",
        everybody("documented"),
        "segshards",
        1.5,
        borrows="documented",
    ),
    Contest(
        "camvid-fast", "CamVid (PNG), the same decoder", "camvid", everybody("fast"), "segshards", 1.0, borrows="fast"
    ),
    Contest(
        "first",
        "Seconds from the start of the process to the first batch, 1,000 shards",
        "thousand",
        everybody("fast"),
        "segshards",
        None,
        first=True,
        borrows="fast",
    ),
)
