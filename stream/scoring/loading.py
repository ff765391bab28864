"""From a folder to a scorer that may serve: every check that comes before a bundle scores its first event."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from stream.config import ScoringSettings
from stream.errors import BundleRefused
from stream.features.spec import Domain
from stream.scoring.bundle import verify
from stream.scoring.scorer import Scorer, TorchScorer

_TIMED_EVENTS = 256
_TIMED_RUNS = 3
_DEFAULTS = ScoringSettings()


def load_scorer(bundle: Path, domain: Domain, settings: ScoringSettings = _DEFAULTS) -> Scorer:
    """Verifies a bundle (hashes, signature when a key is set, features, golden outputs, latency) and makes it ready.

    BundleRefused. Imports torch; blocks for a second or so.
    """
    key = settings.signature_key
    verified = verify(bundle, domain=domain, signature_key=None if key is None else key.get_secret_value().encode())
    scorer = TorchScorer(verified, domain, threads=settings.threads)
    check_latency(scorer, domain, settings.max_batch_ms)
    return scorer


def check_latency(scorer: Scorer, domain: Domain, limit_ms: int) -> None:
    """BundleRefused when 256 events with full sequences take longer than `limit_ms` at each of three tries."""
    length = domain.sequence_length
    steps = np.zeros((_TIMED_EVENTS, length, len(domain.step_columns)), dtype=np.float32)
    lengths = np.full(_TIMED_EVENTS, length, dtype=np.int64)
    aggregates = np.zeros((_TIMED_EVENTS, len(domain.aggregate_columns)), dtype=np.float32)
    best_ms = np.inf
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        scorer.score(steps, lengths, aggregates)
        best_ms = min(best_ms, (time.perf_counter() - started) * 1000)
    if best_ms > limit_ms:
        raise BundleRefused(
            f"latency: {_TIMED_EVENTS} events took {best_ms:.0f} ms, scoring.max_batch_ms allows {limit_ms}; "
            f"deploy a smaller model, or raise the limit"
        )
