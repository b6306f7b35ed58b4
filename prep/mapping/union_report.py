"""What is printed of a union: its counts, by every way of matching, and each name on which the ways differ."""

from __future__ import annotations

from collections.abc import Iterator

from prep.mapping.matching import SAYS
from prep.mapping.union import Joined, Union

_SHOWN = 40  # of a list that a large table makes long


def describe_union(union: Union) -> str:
    """A union as lines for the terminal."""
    base, novel = union.base, len(union.classes) - union.base
    lines = [
        f"union of {', '.join(union.tables)}: {len(union.classes)} classes, {base} base and {novel} novel",
        f"  {union.tables[0]}: {union.names} classes with {base} names, all base",
    ]
    for joined in union.joined:
        lines += _describe_joined(joined)
    lines += _describe_conflicts(union)
    return "\n".join(lines)


def _describe_joined(joined: Joined) -> Iterator[str]:
    base = joined.base[joined.way]
    yield f"  {joined.table}: {base} base, {joined.size - base} novel of {joined.size}, matched by {SAYS[joined.way]}"
    for way, count in joined.base.items():
        if way != joined.way:
            yield f"    by {SAYS[way]} it would be {count} base, {joined.size - count} novel"
    if joined.differences:
        yield f"    the ways differ on {len(joined.differences)} classes:"
    for difference in joined.differences:
        ways = ", ".join(SAYS[way] for way in difference.base_by)
        yield f"      {difference.name}: base by {ways} only; {difference.reason}"


def _describe_conflicts(union: Union) -> Iterator[str]:
    if union.conflicts:
        yield f"  one name, two meanings ({len(union.conflicts)}):"
    for conflict in union.conflicts[:_SHOWN]:
        how = "made one class" if conflict.merged else "kept apart"
        yield f"    {conflict.label}, {how}: {conflict.one}; {conflict.other}"
    if len(union.conflicts) > _SHOWN:
        yield f"    and {len(union.conflicts) - _SHOWN} more"
