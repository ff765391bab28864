"""`riskstream run` with a model that takes a set time for each event: so a machine's speed does not matter.

slow_worker.py MS_PER_EVENT run
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

from stream import app
from stream.cli import main


class SlowScorer:
    """Another scorer, slowed down."""

    def __init__(self, inner: Any, ms_per_event: float) -> None:
        self.manifest, self._inner, self._ms = inner.manifest, inner, ms_per_event

    def score(self, steps: Any, lengths: Any, aggregates: Any) -> Any:
        time.sleep(self._ms / 1000 * len(lengths))
        return self._inner.score(steps, lengths, aggregates)


def build(make: Any, ms_per_event: float, *arguments: Any, scorer: Any, **others: Any) -> Any:
    return make(*arguments, scorer=SlowScorer(scorer, ms_per_event), **others)


if __name__ == "__main__":
    app.build_worker = functools.partial(build, app.build_worker, float(sys.argv[1]))
    main(sys.argv[2:])
