"""Runs ``python -m prep.scenes``."""

from __future__ import annotations

from prep.scenes.write import main

main()
