"""Whether what a stopped build has done still is what its source gives: sizes are no proof, digests are.

Only where files were written since the build began are they read again; see `Plan.stamp`.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from prep.build.encode import Job, source_of
from prep.build.known import digest_bytes, read_digests
from prep.build.plan import Plan
from prep.build.source import DIGEST_BYTES
from prep.build.sources import building_name
from shards.terminal import Progress


def unchanged_chunks(job: Job, plan: Plan, folder: Path, done: int, quiet: bool) -> int:
    """How many of the first `done` chunks are made of samples that all are what they were.

    Args:
        folder: `<out>/.build/`, with the lists of the source samples that were encoded.
        quiet: no progress.
    """
    before: dict[str, bytes] = {}
    seen: Counter[str] = Counter()
    with Progress(None, "samples read again, since their files were written anew", quiet) as progress:
        for chunk in islice(plan.chunks(), done):
            if chunk.split not in before:
                before[chunk.split] = read_digests(folder / building_name(chunk.split))
            now = b"".join(digest_bytes(source_of(job, chunk.split, sample).digest) for sample in chunk.samples)
            at = seen[chunk.split] * DIGEST_BYTES
            if before[chunk.split][at : at + len(now)] != now:
                return chunk.index
            seen[chunk.split] += len(chunk.samples)
            progress.advance(len(chunk.samples))
    return done
