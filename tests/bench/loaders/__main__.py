"""Ours against webdataset, MosaicML Streaming, LitData, SPDL, Grain and Hugging Face datasets, on two cores.

    make bench-loaders
    python -m tests.bench.loaders [--rounds 5] [--only documented,fast] [--peers grain,spdl] [--quick] [--samples 416]

The first run installs the peers, each into a virtual environment of its own under .bench/, and writes the data; both
stay. What cannot be installed is named, and the rest runs. Rounds are interleaved, each run is a fresh process, the
page cache is warm. Prints Markdown and writes all raw figures to runs/bench-loaders-<time>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.loaders import material
from tests.bench.loaders.contests import CONTESTS, TRAINER, Contest, Rival
from tests.bench.loaders.material import Material
from tests.bench.loaders.peers import BY_NAME, OURS, PEERS, ROOT, Peer, install, last_line
from tests.bench.loaders.rounds import RunFailedError, Scores, disagreements, play
from tests.bench.loaders.runner import TOKEN
from tests.bench.loaders.tables import machine, ratio_of, report, version_lines

BATCH = 16
CORES = 2
LIMIT = 600  # seconds of a run
SCENES, QUICK_SCENES = 416, 224


def main() -> None:
    """Prepare, play the rounds, print the report."""
    arguments = parsed()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    contests = [c for c in CONTESTS if not arguments.only or c.name in arguments.only]
    peers = [peer for peer in PEERS if not arguments.peers or peer.name in (OURS, *arguments.peers)]
    absent = {peer.name: why for peer in peers if (why := install(peer))}
    for name, why in absent.items():
        print(f"ABSENT: {BY_NAME[name].title} could not be installed and takes no part: {why}", flush=True)
    present = [peer for peer in peers if peer.name not in absent]
    materials = prepare(contests, present, arguments.samples)
    contests = [contest for contest in contests if contest.material in materials]
    print(f"before: {machine()}", flush=True)
    left_out = {peer.name for peer in PEERS} - {peer.name for peer in present}
    began = time.time()
    scores = play(contests, arguments.rounds, lambda c, r: once(materials[c.material], c, r), say, left_out)
    lines = [f"{machine()}; {arguments.rounds} rounds in {time.time() - began:.0f} s", *version_lines(scores)]
    lines += [f"ABSENT: {BY_NAME[name].title}: {why}" for name, why in absent.items()]
    lines += [f"FAILED: {r.label} ({r.setting}) in {name}: {why}" for (name, r), why in scores.failures.items()]
    lines += [line for contest in contests for line in disagreements(contest, scores)]
    lines += [f"{m.name}: {m.samples} samples, {m.chunks} shards, {m.classes} classes" for m in materials.values()]
    print(report(contests, scores, lines))
    print(f"\nraw figures: {written(contests, scores, lines).relative_to(ROOT)}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5, or 2 with --quick")
    parser.add_argument("--only", type=_names, default=(), help=", ".join(contest.name for contest in CONTESTS))
    parser.add_argument("--peers", type=_names, default=(), help=", ".join(peer.name for peer in PEERS))
    parser.add_argument("--samples", type=int, help="street scenes; 416, or 224 with --quick")
    parser.add_argument("--quick", action="store_true", help="few samples and rounds: rough figures")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.samples = arguments.samples or (QUICK_SCENES if arguments.quick else SCENES)
    known = {*(contest.name for contest in CONTESTS), *BY_NAME}
    unknown = [name for name in (*arguments.only, *arguments.peers) if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)} found; expected names that --help lists")
    return arguments


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def prepare(contests: Sequence[Contest], peers: Sequence[Peer], samples: int) -> dict[str, Material]:
    """The source sets that are needed, with every peer's own format beside them, warm."""
    makers = {
        "streets": lambda: material.streets(samples),
        "photos": lambda: material.photos(samples),
        "camvid": material.camvid,
        "thousand": material.thousand,
    }
    made: dict[str, Material] = {}
    for name in dict.fromkeys(contest.material for contest in contests):
        found = makers[name]()
        if found is None:
            print(f"ABSENT: {name} is not at hand (SEGSHARDS_DATA): its contests are left out", flush=True)
            continue
        for peer in peers:
            if peer.writes:
                convert(found, peer)
        found.warm()
        made[name] = found
    return made


def convert(source: Material, peer: Peer) -> None:
    """Write a peer's own format, if it is not there yet for this very set and these very versions."""
    stamp, wanted = source.folder / f"{peer.name}.made", material.stamp_of(source, peer)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"writing {source.name} for {peer.title} ...", flush=True)
    shutil.rmtree(source.data(peer), ignore_errors=True)
    rival = Rival(peer.name, "", peer.settings[0], peer.title)
    try:
        spawned("write", source, rival)
    except RunFailedError as error:
        print(f"FAILED: {peer.title} could not write {source.name}: {error}", flush=True)
        return
    stamp.write_text(wanted)


def once(source: Material, contest: Contest, rival: Rival) -> dict[str, Any]:
    """One run of a rival in a fresh process."""
    found = spawned("read", source, rival, contest.first)
    value = f"{found['first']:.2f} s" if contest.first else f"{found['rate']:.0f} samples/s"
    say(f"  {contest.name}: {rival.label} ({rival.setting}) {value}")
    return found


def spawned(task: str, source: Material, rival: Rival, first: bool = False) -> dict[str, Any]:
    """What a rival's runner found; raises RunFailedError."""
    peer = BY_NAME[OURS if rival.peer == TRAINER else rival.peer]
    job = {
        "task": task,
        "peer": rival.peer,
        "mode": rival.mode,
        "shards": str(source.shards),
        "data": str(source.data(peer)),
        "setting": rival.setting,
        "batch": BATCH,
        "classes": source.classes,
        "first": first,
        "total": source.samples,
        "spawned": time.time(),
    }
    command = [peer.python, "-m", "tests.bench.loaders.runner", json.dumps(job)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=peer.environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"no end after {LIMIT} s") from None
    line = next((line for line in done.stdout.splitlines() if line.startswith(TOKEN)), None)
    if line is None:
        raise RunFailedError(f"exit code {done.returncode}: {last_line(done.stderr)}")
    return dict(json.loads(line.removeprefix(TOKEN)))


def written(contests: Sequence[Contest], scores: Scores, lines: Sequence[str]) -> Path:
    """All raw figures as JSON under runs/."""
    path = ROOT / "runs" / time.strftime("bench-loaders-%Y%m%d-%H%M%S.json")
    path.parent.mkdir(exist_ok=True)
    runs = [{"contest": name, **vars(rival), "runs": found} for (name, rival), found in scores.runs.items()]
    ratios = {contest.name: ratio_of(contest, scores) for contest in contests}
    path.write_text(json.dumps({"lines": list(lines), "ratios": ratios, "runs": runs}, indent=1) + "\n")
    return path


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
