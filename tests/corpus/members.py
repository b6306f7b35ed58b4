"""Members that come twice, are missing, or stand in another order; rewritten tars, with old and with new seals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.corpus.bases import Bases
from tests.corpus.case import Case, put
from tests.corpus.forge import Part, joined, parts_of, write_sealed

Edit = Callable[[list[Part]], list[Part]]
# Once sealed anew these cannot be told from an honest set: the files do not say what the source had.
UNSEEN = ("missing inst.png", "order jpg of the next sample", "order inst.png of the next sample", "missing sample")


def cases(bases: Bases) -> Iterator[Case]:
    for scale in ("1", "1-2"):
        path = bases.tars("jpeg", scale=scale)[0]
        parts = parts_of((bases["jpeg"] / path).read_bytes())
        for what, edit in _edits(parts).items():
            yield _unsealed(f"members/{what}/{scale}", _kind(what), path, edit)
            if what not in UNSEEN:
                yield _sealed(f"members sealed/{what}/{scale}", f"{_kind(what)}, sealed anew", path, edit)


def _kind(what: str) -> str:
    first = what.split()[0]
    return {"twice": "duplicated members", "missing": "missing members"}.get(first, "members in another order")


def _edits(parts: Sequence[Part]) -> dict[str, Edit]:
    """What is done to the list of members, by name."""
    suffixes = list(dict.fromkeys(part.suffix for part in parts))
    first = [i for i, part in enumerate(parts) if part.key == parts[0].key]
    edits: dict[str, Edit] = {}
    for i, suffix in zip(first, suffixes, strict=True):
        edits[f"missing {suffix}"] = lambda p, i=i: [*p[:i], *p[i + 1 :]]  # type: ignore[misc]
        edits[f"twice {suffix}"] = lambda p, i=i: [*p[: i + 1], p[i], *p[i + 1 :]]  # type: ignore[misc]
        edits[f"twice {suffix} at the end"] = lambda p, i=i: [*p, p[i]]  # type: ignore[misc]
        if i:
            edits[f"order {suffix} first"] = lambda p, i=i: [p[i], *p[:i], *p[i + 1 :]]  # type: ignore[misc]
        edits[f"twice {suffix} with other bytes"] = (
            lambda p, i=i: [  # type: ignore[misc]
                *p[: i + 1],
                replace(p[i], data=p[i + len(first)].data),
                *p[i + 1 :],
            ]
        )
        edits[f"order {suffix} of the next sample"] = lambda p, i=i: [  # type: ignore[misc]
            replace(part, data=p[i + len(first)].data) if j == i else part for j, part in enumerate(p)
        ]
    size = len(first)
    edits["missing sample"] = lambda p: p[size:]
    edits["twice the first sample"] = lambda p: [*p, *p[:size]]
    edits["order of samples"] = lambda p: [*p[size:], *p[:size]]
    edits["order of keys"] = lambda p: _rekeyed(p, size)
    return edits


def _rekeyed(parts: list[Part], size: int) -> list[Part]:
    """The first two samples under each other's keys."""
    names = [part.name for part in parts]
    order = [*names[size : 2 * size], *names[:size], *names[2 * size :]]
    return [replace(part, name=name) for part, name in zip(parts, order, strict=True)]


def _unsealed(name: str, kind: str, path: str, edit: Edit) -> Case:
    def damage(folder: Path) -> None:
        put(folder / path, joined(edit(parts_of((folder / path).read_bytes()))))

    return Case(name, kind, "jpeg", damage, (path,))


def _sealed(name: str, kind: str, path: str, edit: Edit) -> Case:
    def damage(folder: Path) -> None:
        write_sealed(folder, path, edit(parts_of((folder / path).read_bytes())))

    return Case(name, kind, "jpeg", damage, (), sealed=True, harmless=" first/" in name and "order" in name)
