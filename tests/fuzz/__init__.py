"""Fuzzing of everything that parses what others wrote: only typed errors may come out, soon, and within bounds.

targets     each parser as a function of bytes, and what it may raise
seeds       honest inputs to start from
mutate      bytes -> other bytes: flips, cuts, repeats, numbers and words that parsers trip over
found/      one folder a target: inputs that once broke it, and a few that reach deep; all are tests for ever

guided      the same targets, guided by coverage, where atheris is installed

`pytest tests/fuzz` replays found/ and tries a bounded number of new inputs; the long roads are
`python -m tests.fuzz soft --seconds 300` and `python -m tests.fuzz.guided soft --seconds 300 --keep FOLDER`.
"""
