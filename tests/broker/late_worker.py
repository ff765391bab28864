"""`riskstream run` with a planted mistake: the engine's thread loads the bundles, and its events wait for it.

late_worker.py score|take MS run

score: the first turn that scores with a bundle loads it. take: what is new is loaded between two turns. Loading
takes MS milliseconds more than it would.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stream import app
from stream.cli import main
from stream.rollout.watch import ModelWatch
from stream.scoring.bundle import MANIFEST_FILE, read_manifest
from stream.scoring.lineup import Change
from stream.scoring.loading import load_scorer


def load(*what: Any) -> Any:
    time.sleep(float(sys.argv[2]) / 1000)
    return load_scorer(*what)


class LazyScorer:
    """A scorer that is not there until it is asked for a score."""

    def __init__(self, folder: Path, *how: Any) -> None:
        self.manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
        self._what, self._loaded = (folder, *how), None

    def score(self, *arrays: Any) -> Any:
        if self._loaded is None:
            self._loaded = load(*self._what)
        return self._loaded.score(*arrays)


def take(watch: ModelWatch) -> Sequence[Change]:
    watch._look()
    return ready(watch)


if __name__ == "__main__":
    ready = ModelWatch.take
    if sys.argv[1] == "score":
        app.load_scorer = LazyScorer
    else:
        app.load_scorer = load
        ModelWatch.start = lambda watch: None
        ModelWatch.take = take
    main(sys.argv[3:])
