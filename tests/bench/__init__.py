"""Benchmarks: each is a script that says how it is run; `make bench` runs the short ones."""
