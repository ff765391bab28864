"""The unit: the bare TorchScript program, batches of 256, one thread. Events per CPU second."""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch

from bench.job import Job

BATCH = 256
_BURN_IN, _BATCHES, _REPEATS = 20, 60, 5


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    rates = unit(job, repeats=3 if quick else _REPEATS)
    median = statistics.median(rates)
    return {"events_per_cpu_s": round(median, 1), "us_per_event": round(1e6 / median, 2), "rates": [*map(round, rates)]}


def unit(job: Job, *, repeats: int = _REPEATS) -> list[float]:
    """Events per CPU second of this thread, several times. Taken around every case that is compared with it."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; it is the serving format on purpose
        module = torch.jit.load(str(job.bundle / "model.ts")).eval()  # type: ignore[no-untyped-call]
    rng = np.random.default_rng(1)
    domain = job.domain
    steps = torch.from_numpy(rng.random((BATCH, domain.sequence_length, len(domain.step_columns)), dtype=np.float32))
    lengths = torch.from_numpy(rng.integers(1, domain.sequence_length + 1, BATCH))
    aggregates = torch.from_numpy(rng.random((BATCH, len(domain.aggregate_columns)), dtype=np.float32))
    rates = []
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        for _ in range(_BURN_IN):
            module(steps, lengths, aggregates)
        for _ in range(repeats):
            started = time.thread_time()
            for _ in range(_BATCHES):
                module(steps, lengths, aggregates)
            rates.append(BATCH * _BATCHES / (time.thread_time() - started))
    return rates


def around(job: Job, before: list[float]) -> float:
    """The unit over a case: the median of what was measured before it and after it."""
    return statistics.median([*before, *unit(job, repeats=3)])
