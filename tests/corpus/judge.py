"""What `seg-shards verify` and the reader say of a shard set that was tampered with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shards
from shards.errors import FormatError, SegshardsError, UserError
from shards.verify import verify
from tests.corpus.bases import SPLITS, Bases
from tests.corpus.case import Case

SCALES = ("1", "1/2")
RAISED, RIGHT, WRONG, FEWER, CRASHED = "error", "all right", "wrong data", "samples missing", "crash"
Facts = tuple[Any, ...]
PARTS = ("jpg", "png", "webp", "seg.png", "inst.png", "soft.npz", "json")
OF_SAMPLES = frozenset(  # classes of fault that lie within a sample, whose key an error must give
    [f"bit flips: {part} data" for part in PARTS]
    + [f"bombs and absurd headers: {part}" for part in ("png", "jpeg", "webp", "npz", "json")]
    + ["truncated within data"]
)


@dataclass
class Verdict:
    """What came of a case.

    Attributes:
        found: whether verify complained.
        named: whether it named a damaged file (or nothing was to be named).
        reader: RAISED, RIGHT, WRONG, FEWER or CRASHED; the worst over all samples.
        said: what verify and the reader said first.
        errors: all errors of the reader, each once.
        keyless: those of reading a sample that do not hold its key.
        faults: what breaks the contract, as text; none is what should be.
    """

    found: bool = False
    named: bool = False
    reader: str = RIGHT
    said: list[str] = field(default_factory=list)
    errors: dict[str, None] = field(default_factory=dict)
    keyless: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def facts(sample: shards.Sample) -> Facts:
    """A sample as something that can be compared."""
    arrays = (sample.image, sample.hard, sample.weak, sample.instances)
    plain = tuple(None if a is None else (a.dtype.str, a.shape, a.tobytes()) for a in arrays)
    soft = sample.soft
    cells = (
        None
        if soft is None
        else tuple(a.tobytes() for a in (soft.base, soft.cells, soft.starts, soft.ids, soft.weights))
    )
    return (*plain, cells, None if soft is None else soft.denominator, repr(sorted(sample.meta.items())))


class Judge:
    """Judges cases against what the sound sets hold.

    Args:
        bases: the sound sets.
        check: whether the reader hashes files at first touch, as it does by default; without, damage within members
            that carry no checksum of their own (jpg, webp, json) may pass, and is counted, but is no fault.
    """

    def __init__(self, bases: Bases, check: bool = True) -> None:
        self._bases, self._check_files = bases, check
        self._known: dict[str, dict[tuple[str, str, str], Facts]] = {}

    def judge(self, case: Case, folder: Path) -> Verdict:
        """The verdict on the damaged set in `folder`."""
        verdict = Verdict()
        self._verify(case, folder, verdict)
        self._read(case, folder, verdict)
        self._check(case, verdict)
        return verdict

    def known(self, base: str) -> dict[tuple[str, str, str], Facts]:
        """{(split, scale, key): facts} of a sound set."""
        if base not in self._known:
            self._known[base] = {
                (split, scale, sample.key): facts(sample)
                for split in SPLITS
                for scale in SCALES
                for sample in shards.open(self._bases[base], split=split, scale=scale)
            }
        return self._known[base]

    def _verify(self, case: Case, folder: Path, verdict: Verdict) -> None:
        try:
            problems = list(verify(folder))
        except (FormatError, UserError) as error:
            problems = [str(error)]
        except Exception as error:  # the finding that this corpus is for
            verdict.faults.append(f"verify raised {type(error).__name__}: {error}")
            verdict.found = True
            return
        verdict.found = bool(problems)
        verdict.said += problems[:1]
        if any("\n" in problem for problem in problems):
            verdict.faults.append("verify: a problem of several lines")
        verdict.named = not case.files or any(_names(problem, case.files) for problem in problems)

    def _read(self, case: Case, folder: Path, verdict: Verdict) -> None:
        """Every sample of every split at every scale, by itself: one that is broken must not hide the others."""
        known, seen = self.known(case.base), set()
        for place, sample in self._samples(folder, verdict):
            if known.get(place) != facts(sample):
                verdict.reader = WRONG if verdict.reader != CRASHED else CRASHED
                verdict.said.append(f"reader passed {place}")
            seen.add(place)
        if verdict.reader == RIGHT and len(seen) < len(known):
            verdict.reader = FEWER

    def _samples(self, folder: Path, verdict: Verdict) -> Iterator[tuple[tuple[str, str, str], shards.Sample]]:
        for split in SPLITS:
            for scale in SCALES:
                dataset = self._tried(
                    verdict,
                    lambda split=split, scale=scale: shards.open(
                        folder, split=split, scale=scale, check=self._check_files
                    ),
                )
                if dataset is None:
                    continue
                keys = self._tried(verdict, dataset.keys) or []
                for i in range(min(len(dataset), 64)):
                    key = keys[i] if i < len(keys) else ""
                    sample = self._tried(verdict, lambda i=i, dataset=dataset: dataset[i], key)
                    if sample is not None:
                        yield (split, scale, key or sample.key), sample

    def _tried(self, verdict: Verdict, call: Any, key: str = "") -> Any:
        """The call's value; None where it raised, which is noted; of a sample, the error should hold its key."""
        try:
            return call()
        except SegshardsError as error:
            if verdict.reader == RIGHT:
                verdict.reader = RAISED
            if len(verdict.said) < 4:
                verdict.said.append(str(error))
            verdict.errors[str(error)] = None
            verdict.keyless += [] if key in str(error) else [str(error)]
            if "\n" in str(error):
                verdict.faults.append("reader: an error of several lines")
            if not isinstance(error, (FormatError, UserError)):
                verdict.faults.append(f"reader raised {type(error).__name__}: {error}")
        except Exception as error:
            verdict.reader = CRASHED
            verdict.faults.append(f"reader raised {type(error).__name__}: {error}")
        return None

    def _check(self, case: Case, verdict: Verdict) -> None:
        if case.harmless:
            if verdict.found or verdict.reader != RIGHT:
                verdict.faults.append(f"sound, and yet: {verdict.said}")
            return
        intact = case.sealed and verdict.reader == RIGHT  # whoever sealed it anew left every sample as it was
        if not (verdict.found or case.unvouched or intact):
            verdict.faults.append("verify found nothing")
        if verdict.found and not verdict.named:
            verdict.faults.append(f"verify named none of {case.files}: {verdict.said[:1]}")
        if verdict.reader == WRONG and not case.sealed and self._check_files:
            verdict.faults.append(f"reader: other data than was written: {verdict.said[-1]}")
        if verdict.reader == FEWER and not case.sealed:
            verdict.faults.append("reader: fewer samples without an error")
        vague = [error for error in verdict.errors if not (case.sealed or _names(error, case.files))]
        if vague:
            verdict.faults.append(f"reader named none of {case.files or 'the files'}: {vague[0]}")
        if verdict.keyless and case.kind in OF_SAMPLES:
            verdict.faults.append(f"reader did not name the sample: {verdict.keyless[0]}")


def _names(said: str, files: Sequence[str]) -> bool:
    """Whether a message holds the name of one of the damaged files; of any file where there is none to be named."""
    if files:
        return any(Path(file).name in said for file in files)
    return any(suffix in said for suffix in (".tar", ".index.jsonl", "manifest.json", ".zarr"))
