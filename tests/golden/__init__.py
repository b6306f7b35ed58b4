"""Shard sets of format version 1 as they were first published; readers must read them for ever.

Made once by ``python -m tests.golden.make`` and never again within a format version.
"""
