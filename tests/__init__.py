"""Tests: `shards/`, `prep/` and `train/` mirror the packages, `bench/` holds the benchmarks."""
