"""The bench's results as Markdown: a table a contest, one of memory, and lines on the machine and the versions."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.bench.loaders.contests import Contest, Rival
from tests.bench.loaders.rounds import Scores
from tests.bench.timing import markdown, met


def contest_table(contest: Contest, scores: Scores) -> str:
    """Rivals by falling rate, each with its best setting, and its rate over ours."""
    ranked = sorted(scores.best(contest).items(), key=lambda item: _order(contest, scores, item[1]))
    unit = "seconds" if contest.first else "samples/s"
    base = scores.best(contest).get(contest.base)
    ours = scores.value(contest, base) if base else None
    rows = [_row(contest, scores, label, rival, ours) for label, rival in ranked]
    head = ["", "setting", unit, "lowest to highest", "rounds", "CPU ms a sample", "times ours"]
    return f"### {contest.title}\n\n{markdown(head, rows)}\n\n{verdict(contest, scores)}"


def _row(contest: Contest, scores: Scores, label: str, rival: Rival, ours: float | None) -> list[object]:
    runs = scores.runs[contest.name, rival]
    values = [run["first" if contest.first else "rate"] for run in runs]
    cpu = [run["cpu_ms"] for run in runs if "cpu_ms" in run]
    middle = scores.value(contest, rival) or 0.0
    spread = f"{_number(min(values))} to {_number(max(values))}"
    spent = f"{statistics.median(cpu):.1f}" if cpu else "-"
    return [label, rival.setting, _number(middle), spread, len(runs), spent, f"{middle / ours:.2f}" if ours else "-"]


def verdict(contest: Contest, scores: Scores) -> str:
    """Ours over the best of the others, and whether the target is met."""
    ratio = ratio_of(contest, scores)
    if contest.first:
        best = scores.best(contest)
        ours = scores.value(contest, best[contest.base]) if contest.base in best else None
        return "ours: not measured" if ours is None else f"ours: {ours:.2f} s (target within 1 s: {met(ours <= 1)})"
    if ratio is None:
        return "ours / best: not measured"
    goal = "" if contest.target is None else f" (target {contest.target:g}: {met(ratio >= contest.target)})"
    return f"**ours / best: {ratio:.2f}**{goal}{_versus(contest, scores)}"


def _versus(contest: Contest, scores: Scores) -> str:
    """The base against one rival that is named apart from the best."""
    best = scores.best(contest)
    if contest.versus not in best or contest.base not in best:
        return ""
    mine, other = (scores.value(contest, best[label]) for label in (contest.base, contest.versus))
    return f"; ours / {contest.versus}: {mine / other:.1f}" if mine and other else ""


def ratio_of(contest: Contest, scores: Scores) -> float | None:
    """Rate of the contest's base over that of the best rival that is not ours; None where either is missing."""
    best = scores.best(contest)
    if contest.base not in best:
        return None
    mine = scores.value(contest, best[contest.base])
    mates = {label for label in best if label.startswith("segshards")} | {contest.base}
    others = [scores.value(contest, rival) for label, rival in best.items() if label not in mates]
    known = [value for value in others if value]
    return mine / max(known) if mine and known else None


def memory_table(contest: Contest, scores: Scores) -> str:
    """Memory of all processes of a rival at 10, 50 and 100 % of the epoch, less one batch."""
    rows, most = [], None
    for label, rival in scores.best(contest).items():
        found = scores.runs[contest.name, rival][-1]
        marks = [found["memory"].get(share) for share in ("0.1", "0.5", "1.0")]
        cells = ["-" if mark is None else f"{mark - found['batch_mb']:.0f}" for mark in marks]
        rows.append([label, rival.setting, f"{found['batch_mb']:.0f}", *cells])
        if label == contest.base:
            most = max((mark - found["batch_mb"] for mark in marks if mark is not None), default=None)
    goal = "ours: not measured" if most is None else f"ours: at most {most:.0f} MB beyond a batch (target under 300 MB"
    goal += "" if most is None else f": {met(most < 300)})"
    head = ["", "setting", "MB of a batch", "beyond it at 10 %", "50 %", "100 %"]
    title = f"### Memory of a loader's processes in '{contest.name}', in MB (shared pages counted once)"
    return f"{title}\n\n{markdown(head, rows)}\n\n{goal}"


def machine() -> str:
    """What this runs on."""
    model = "unknown"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{model}, {cores} cores used of {os.cpu_count()}, {platform.platform()}; load {load}"


def version_lines(scores: Scores) -> list[str]:
    """Versions of everything that ran, a line a rival."""
    seen: dict[str, Mapping[str, str]] = {}
    for (_, rival), runs in scores.runs.items():
        for run in runs:
            if run.get("versions"):
                seen.setdefault(rival.peer, run["versions"])
    return [f"{peer}: " + ", ".join(f"{name} {v}" for name, v in found.items()) for peer, found in seen.items()]


def report(contests: Sequence[Contest], scores: Scores, lines: Iterable[str] = ()) -> str:
    """Everything, as Markdown."""
    parts = [contest_table(contest, scores) for contest in contests]
    parts += [memory_table(contest, scores) for contest in contests if contest.name == "fast"]
    return "\n\n".join([*lines, *parts])


def _order(contest: Contest, scores: Scores, rival: Rival) -> float:
    value = scores.value(contest, rival) or 0.0
    return value if contest.first else -value


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
