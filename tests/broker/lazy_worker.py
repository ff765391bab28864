"""`riskstream run` with a planted mistake: a bundle is loaded by the turn that first scores with it.

lazy_worker.py run
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stream import app
from stream.cli import main
from stream.scoring.bundle import MANIFEST_FILE, read_manifest
from stream.scoring.loading import load_scorer


class LazyScorer:
    """A scorer that is not there until it is asked for a score: every event behind that waits."""

    def __init__(self, folder: Path, *how: Any) -> None:
        self.manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
        self._folder, self._how, self._loaded = folder, how, None

    def score(self, *arrays: Any) -> Any:
        if self._loaded is None:
            self._loaded = load_scorer(self._folder, *self._how)
        return self._loaded.score(*arrays)


if __name__ == "__main__":
    app.load_scorer = LazyScorer
    main(sys.argv[1:])
