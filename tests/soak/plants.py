"""Defects to be planted into a forked worker, by name: the soak must turn red for each. Tests only."""

from __future__ import annotations

from collections.abc import Callable

PLANTS: dict[str, Callable[[], None]] = {}
