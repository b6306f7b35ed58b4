"""A corpus of damaged shard sets: what the reader, `seg-shards verify` and plain webdataset say of each.

    python -m tests.corpus                     # all cases; prints the table and what fell short
    python -m tests.corpus --only bomb         # cases whose name holds "bomb"
    python -m tests.corpus --no-check          # what the reader sees without hashing files at first touch

Shard sets are made by the real writer from tiny fakes; every damage is a function of a fixed seed.

bases       the sound sets: tar shards with JPEG, PNG and WebP images, a Zarr set, another build of the same keys
case        a case: its name, its class of fault, what it does to a copy of a base
forge       tar, index and manifest as a liar writes them: raw headers, rewritten members, seals made anew
flips cuts tars members bombs manifests places stores sums     the cases, by what is damaged
judge       our reader's and verify's verdict     peer    webdataset's
guarded     a child process with capped memory and time, in which cases are judged
"""
