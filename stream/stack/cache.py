"""Where downloaded and generated things live, and a lock between processes that fill it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE_VARIABLE = "RISKSTREAM_CACHE"


def cache_folder() -> Path:
    """RISKSTREAM_CACHE; else `.cache` of the checkout; else, installed from a wheel, the user's cache folder."""
    if configured := os.environ.get(CACHE_VARIABLE):
        return Path(configured).absolute()
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "riskstream"


@contextmanager
def exclusive(lock_file: Path) -> Iterator[None]:
    """Holds a lock between processes. Blocks until it is free; the kernel frees it when its holder dies."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
