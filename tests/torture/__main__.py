"""Kill builds, and say what came of them. Exit 1 where any trial failed (with --sabotage: where none did).

python -m tests.torture --trials 1000 --seed 0
python -m tests.torture --trials 50 --sabotage manifest
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.timing import markdown
from tests.torture.arenas import BUILDS, SHARE_OF_PROCESSES, arenas, scratch_folder
from tests.torture.sabotage import SABOTAGE
from tests.torture.trial import KINDS, PHASES, Arena, Result, trial

SHOWN = 10  # failures


def torture(places: dict[str, Arena], trials: int, seed: int) -> Iterator[tuple[str, Result]]:
    """Run trials, the arenas taking turns; yields after each its arena and what all of that arena's have shown."""
    results = {name: Result() for name in places}
    light = [name for name in places if name not in SHARE_OF_PROCESSES]
    for number in range(seed, seed + trials):
        heavy = [name for name in places if number % SHARE_OF_PROCESSES.get(name, trials + seed + 1) == 0]
        name = (heavy or light)[number % len(heavy or light)]
        trial(places[name], number, results[name])
        yield name, results[name]


def table(results: dict[str, Result]) -> str:
    """Trials and kills by arena and phase."""
    rows: list[list[str | int]] = []
    for name, result in results.items():
        kills = [sum(result.kills[kind, phase] for kind in KINDS) for phase in PHASES]
        rows.append([name, result.trials, *kills, result.trials - len(result.failures)])
    rows.append(["all", *(sum(int(row[i]) for row in rows) for i in range(1, len(PHASES) + 3))])
    return markdown(["build", "trials", *PHASES, "identical"], rows)


def main() -> int:
    """Run the trials that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first trial")
    parser.add_argument("--sabotage", choices=list(SABOTAGE))
    parser.add_argument("--builds", nargs="+", choices=list(BUILDS), help="all, if left out")
    given = parser.parse_args()
    began, results = time.monotonic(), dict[str, Result]()
    with scratch_folder() as folder:
        places = arenas(Path(folder), given.sabotage, given.builds or tuple(BUILDS))
        for name, result in torture(places, given.trials, given.seed):
            results[name] = result
            if given.sabotage and result.failures:
                break
    for name, result in results.items():
        calls, away = places[name].lengths["disk"], places[name].elsewhere
        print(f"{name}: {calls:.0f} calls change the disk, {away} in other threads, where {result.away} kills hit")
    failures = [f"{name}, {line}" for name, result in results.items() for line in result.failures]
    print(f"{table(results)}\n\n{time.monotonic() - began:.0f} s")
    for line in failures[:SHOWN]:
        print(f"  {line}")
    if given.sabotage:
        tried = sum(result.trials for result in results.values())
        print(f"sabotage {given.sabotage}: {f'found by trial {tried}' if failures else f'not found by {tried} trials'}")
    return int(bool(failures) != bool(given.sabotage))


if __name__ == "__main__":
    raise SystemExit(main())
