"""Interleaved rounds: in each round every rival of every contest runs once, in a fresh process, in another order.

In the first round every setting of a rival takes part, in the others the best of the first; so a rival's settings are
chosen in its favour. Figures are medians over the rounds. A rival that fails is named and left out; the rest goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.loaders.contests import Contest, Rival

Run = Callable[[Contest, Rival], dict[str, Any]]
Say = Callable[[str], None]


class RunFailedError(Exception):
    """A rival's process ended badly; the message says how."""


@dataclass
class Scores:
    """What was measured so far.

    Args:
        runs: (contest, rival) -> the runner's findings, one a round.
        failures: (contest, rival) -> why it was left out.
    """

    runs: dict[tuple[str, Rival], list[dict[str, Any]]] = field(default_factory=dict)
    failures: dict[tuple[str, Rival], str] = field(default_factory=dict)

    def value(self, contest: Contest, rival: Rival) -> float | None:
        """Median rate in samples/s, or seconds to the first batch; None where nothing was measured."""
        found = self.runs.get((contest.name, rival))
        return statistics.median(run["first" if contest.first else "rate"] for run in found) if found else None

    def best(self, contest: Contest) -> dict[str, Rival]:
        """For each label its best setting, of those with most rounds."""
        chosen: dict[str, Rival] = {}
        for rival in contest.rivals:
            if self.value(contest, rival) is not None:
                other = chosen.get(rival.label)
                if other is None or self._rank(contest, rival) > self._rank(contest, other):
                    chosen[rival.label] = rival
        return chosen

    def _rank(self, contest: Contest, rival: Rival) -> tuple[int, float]:
        value = self.value(contest, rival) or 0.0
        return len(self.runs[contest.name, rival]), -value if contest.first else value


def play(contests: Sequence[Contest], rounds: int, run: Run, say: Say = print, absent: Iterable[str] = ()) -> Scores:
    """Run all contests, interleaved.

    Args:
        contests: those that are played.
        rounds: how many.
        run: one rival once; raises RunFailedError.
        say: takes lines about what goes on.
        absent: peers that could not be installed; said once by the caller.
    """
    scores, gone = Scores(), set(absent)
    for number in range(rounds):
        for contest in contests:
            rivals = [rival for rival in taking_part(contest, contests, scores, number) if rival.peer not in gone]
            for rival in rotated(rivals, number):
                _once(contest, rival, scores, run, say)
        say(f"round {number + 1} of {rounds} done")
    return scores


def taking_part(contest: Contest, contests: Sequence[Contest], scores: Scores, number: int) -> list[Rival]:
    """The rivals of a round: all settings in the first, then the best; borrowed choices hold from the first round."""
    donor = next((other for other in contests if other.name == contest.borrows), None)
    if number > 0:
        wanted = set(scores.best(contest).values())
    elif donor is not None:
        kept = {(rival.peer, rival.setting) for rival in scores.best(donor).values()}
        known = {peer for peer, _ in kept}
        wanted = {rival for rival in contest.rivals if rival.peer not in known or (rival.peer, rival.setting) in kept}
    else:
        wanted = set(contest.rivals)
    bad = {rival for name, rival in scores.failures if name == contest.name}
    return [rival for rival in contest.rivals if rival in wanted and rival not in bad]


def rotated(rivals: Sequence[Rival], number: int) -> list[Rival]:
    """The same rivals, beginning with another one each round."""
    at = number % len(rivals) if rivals else 0
    return [*rivals[at:], *rivals[:at]]


def _once(contest: Contest, rival: Rival, scores: Scores, run: Run, say: Say) -> None:
    try:
        found = run(contest, rival)
    except RunFailedError as error:
        scores.failures[contest.name, rival] = str(error)
        scores.runs.pop((contest.name, rival), None)
        say(f"FAILED: {rival.label} ({rival.setting}) in {contest.name}: {error}")
        return
    scores.runs.setdefault((contest.name, rival), []).append(found)


def disagreements(contest: Contest, scores: Scores, tolerance: float = 3e-3) -> list[str]:
    """Rivals whose samples or label sums differ from the first one's: their work was not equal."""
    lines, first = [], None
    for rival in contest.rivals:
        for found in scores.runs.get((contest.name, rival), ()):
            if contest.first:
                continue
            first = first or (rival.label, found["samples"], found["checksum"])
            _, samples, checksum = first
            if found["samples"] != samples or abs(found["checksum"] - checksum) > tolerance * abs(checksum):
                lines.append(
                    f"UNEQUAL WORK: {rival.label} ({rival.setting}) in {contest.name}: {found['samples']} samples, "
                    f"label sum {found['checksum']:.6g}; {first[0]} has {samples} and {checksum:.6g}"
                )
    return list(dict.fromkeys(lines))
