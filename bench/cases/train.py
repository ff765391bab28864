"""Training: history to features, events per second; one epoch, sequences per second. CPU seconds, one thread."""

from __future__ import annotations

import time
from typing import Any

from bench.job import Job

_EVENTS, _QUICK_EVENTS = 60_000, 25_000
_ACCOUNTS = 1_000


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    from models.fitting import FitOptions  # noqa: PLC0415  # torch and sklearn, for this case alone
    from models.history import training_set  # noqa: PLC0415
    from models.train import TrainOptions, train  # noqa: PLC0415
    from stream import app  # noqa: PLC0415
    from stream.history.batch import iterate_slices  # noqa: PLC0415

    batch = job.events(_QUICK_EVENTS if quick else _EVENTS, accounts=_ACCOUNTS)
    started = time.process_time()
    dataset = training_set(
        iterate_slices(batch, 16_384), job.domain, app.load_rates(job.settings(), job.domain), until_ms=2**62
    )
    features_s = time.process_time() - started
    seen: list[tuple[str, float, int]] = []

    def note(progress: Any) -> None:
        seen.append((progress.stage, time.process_time(), progress.done))

    options = TrainOptions(
        until_ms=int(batch.time_ms[-1]) + 1,
        label_delay_ms=7 * 86_400_000,
        alert_rate=job.domain.alert_rate,
        fit=FitOptions(epochs=1, epoch_events=(20_000, 20_000)),
        refit=False,
    )
    train(dataset, options, note)
    steps = [(cpu, done) for stage, cpu, done in seen if stage == "member 1"]
    epoch_s, sequences = steps[-2][0] - steps[1][0], (steps[-2][1] - steps[1][1]) * options.fit.batch_size
    return {
        "events": len(batch),
        "events_per_cpu_s": round(len(batch) / features_s, 1),
        "sequences": sequences,
        "sequences_per_cpu_s": round(sequences / epoch_s, 1),
    }
