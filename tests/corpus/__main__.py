"""Judge the whole corpus and print the table: `python -m tests.corpus [--only TEXT] [--no-peer]`. Exit 1 at a fault."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.corpus.bases import make_bases
from tests.corpus.case import Case
from tests.corpus.cases import corpus
from tests.corpus.guarded import HEADROOM, Guard
from tests.corpus.judge import CRASHED, FEWER, RAISED, RIGHT, WRONG, Verdict
from tests.corpus.peer import HUNG, MORE, RAN_CODE, PeerVerdict

Row = tuple[Case, Verdict, PeerVerdict | None, int]
MB = 1 << 20


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="cases whose name holds this")
    options.add_argument("--no-peer", action="store_true", help="leave webdataset out")
    options.add_argument("--no-check", action="store_true", help="read without hashing files at first touch")
    options.add_argument("--jobs", type=int, default=2, help="child processes  [default: 2]")
    asked = options.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bases = make_bases(Path(folder))
        chosen = [case for case in corpus(bases) if asked.only in case.name]
        parts = [chosen[start :: asked.jobs] for start in range(asked.jobs)]
        guard = partial(Guard, bases, not asked.no_peer, not asked.no_check)
        with ThreadPoolExecutor(asked.jobs) as threads:
            rows = [row for part in threads.map(lambda p: judge_all(p, guard()), parts) for row in part]
    rows.sort(key=lambda row: chosen.index(row[0]))
    print("\n".join(table(rows)))
    faults = sum(len(verdict.faults) for _, verdict, _, _ in rows)
    print(f"{len(rows)} cases, {faults} faults, {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


def judge_all(cases: list[Case], guard: Guard) -> list[Row]:
    """Judge cases in a guard's child; what falls short is told at once."""
    rows = []
    for number, case in enumerate(cases, 1):
        rows.append((case, *guard.judge(case)))
        if number % 200 == 0:
            print(f"{number}/{len(cases)}", file=sys.stderr, flush=True)
        for fault in rows[-1][1].faults:
            print(f"{number}/{len(cases)} {case.name}: {fault}", file=sys.stderr, flush=True)
    guard.close()
    return rows


def table(rows: list[Row]) -> list[str]:
    """A line for each class of fault, then sums."""
    kinds = defaultdict(list)
    for row in rows:
        kinds[row[0].kind].append(row)
    head = "| class of fault | cases | verify finds | reader: error | all right | wrong data passed | most memory |"
    peer = " webdataset: error / right / wrong data / lost / twice / ran a pickle / hung / crash | going on |"
    lines = [head + peer, "|---|" + "---:|" * 6 + "---|---|"]
    lines += [_line(kind, part) for kind, part in kinds.items()]
    lines.append(_line("**all**", rows))
    bombs = [row for row in rows if row[0].bomb]
    if bombs:
        worst = max(bombs, key=lambda row: row[3])
        lines.append(f"memory of the child was capped {HEADROOM // MB} MB above what it had; most in a bomb case: ")
        lines[-1] += f"{worst[3] // MB} MB ({worst[0].name})"
    return lines


def _line(kind: str, rows: list[Row]) -> str:
    verdicts = [verdict for _, verdict, _, _ in rows]
    reader = Counter(verdict.reader for verdict in verdicts)
    found = sum(verdict.found for verdict in verdicts)
    most = max(memory for *_, memory in rows) // MB
    cells = (kind, len(rows), found, reader[RAISED], reader[RIGHT], reader[WRONG], f"{most} MB")
    ours = f"| {' | '.join(map(str, cells))} |"
    peers = [peer for _, _, peer, _ in rows if peer is not None]
    if not peers:
        return f"{ours} - | - |"
    return f"{ours} {_peer([p.default for p in peers])} | {_peer([p.going_on for p in peers])} |"


def _peer(verdicts: list[str]) -> str:
    counts = Counter(verdicts)
    shown = " / ".join(str(counts[name]) for name in (RAISED, RIGHT, WRONG, FEWER, MORE, RAN_CODE, HUNG, CRASHED))
    return f"{len(verdicts)}: {shown}"


if __name__ == "__main__":
    sys.exit(main())
