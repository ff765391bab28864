"""How much fraud the default bundle finds on a public card history, beside LightGBM on the same features.

Run by `make quality`. Replays the history once, trains the default bundle with three seeds on what was known on
2020-07-01 with 7 days of label delay, exports and verifies each bundle, and scores the events after that date
through the bundle as a worker would. Writes a report. The last line of stdout is JSON: means over the seeds.

The data: RISKSTREAM_SHARED_DATA, or ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.baselines import Data, calibrated, lightgbm
from models.calibrate import choose_thresholds
from models.cli.source import moment
from models.dataset import TrainingSet
from models.evaluation import document_of
from models.export import export_bundle
from models.figures import figures
from models.fitting import Progress
from models.history import training_set
from models.prequential import Fold, FoldResult, scored, tested
from models.report.page import write
from models.splits import known_by, split
from models.train import TrainOptions, train
from stream.app import load_domain, load_rates
from stream.cli.history import History
from stream.clock import SystemClock
from stream.config import load_settings
from stream.scoring.bundle import verify
from stream.scoring.scorer import TorchScorer

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RISKSTREAM_SHARED_DATA", ROOT.parent / "shared" / "data"))
HISTORY, MAPPING = DATA / "sparkov_cards.parquet", ROOT / "examples" / "sparkov.yaml"
UNTIL, DELAY_MS = "2020-07-01", 7 * 86_400_000
SEEDS = (0, 1, 2)
REPORTED = ("auc", "average_precision", "card_precision_100", "recall_at_fpr_0_1pct", "ece")
_BATCH = 256
MOST_ECE = 0.01


@dataclass(frozen=True, slots=True)
class Task:
    """The history, replayed once, and its split in time."""

    dataset: TrainingSet
    options: TrainOptions
    fold: Fold
    test: NDArray[np.int64]


def main() -> int:
    """0 if the default bundle is at least LightGBM's equal in average precision and well calibrated; else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="fewer: a quick try")
    parser.add_argument("--jobs", type=int, default=2, help="fits at a time, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "quality.html", help="the report")
    options = parser.parse_args()
    if not HISTORY.exists():
        print(f"{HISTORY} is not here; set RISKSTREAM_SHARED_DATA to the folder that holds it", file=sys.stderr)
        return 2
    task = prepared()
    # Forked, so that the processes share the features: nothing is sent to them but what to do.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.jobs, fork, initializer=_SHARED.append, initargs=(task,)) as pool:
        running = [pool.submit(_own, seed) for seed in SEEDS[: options.seeds]]
        tree, tree_s = pool.submit(_baseline).result()
        runs = [run.result() for run in running]
    results = {"riskstream": [run.result for run in runs], "lightgbm": [tree]}
    document = document_of(task.dataset, results, DELAY_MS, "make quality")
    document["title"] = "The default bundle and LightGBM on a public card history"
    document["summary"] = f"Trained on what was known on {UNTIL}, tested after; {len(runs)} seeds as folds."
    write(document, options.out)
    means = {name: float(np.mean([run.figures[name] for run in runs])) for name in REPORTED}
    theirs = figures(tree.scored)
    line: dict[str, Any] = {name: round(value, 5) for name, value in means.items()}
    line |= {
        "lightgbm": {name: round(theirs[name], 5) for name in REPORTED} | {"train_s": round(tree_s, 1)},
        "train_s": round(float(np.mean([run.train_s for run in runs])), 1),
        "score_events_per_s": round(float(np.mean([run.events_per_s for run in runs]))),
        "seeds": [round(run.figures["average_precision"], 5) for run in runs],
        "tested_events": len(task.test),
        "tested_frauds": int(tree.scored.fraud.sum()),
        "report": str(options.out),
    }
    print(json.dumps(line))
    good = means["average_precision"] >= theirs["average_precision"] and means["ece"] <= MOST_ECE
    return 0 if good else 1


_SHARED: list[Task] = []


def _own(seed: int) -> Run:
    return own(_SHARED[0], seed)


def _baseline() -> tuple[FoldResult, float]:
    return baseline(_SHARED[0])


def prepared() -> Task:
    """Replays the history. Blocks for about half a minute."""
    settings = load_settings(None, {}, {}).settings
    domain = load_domain(settings)
    history = History(domain, HISTORY, MAPPING, label_delay_ms=DELAY_MS)
    dataset = training_set(history, domain, load_rates(settings, domain), until_ms=2**62)
    for line in history.lines():
        print(line, file=sys.stderr)
    until_ms = moment(UNTIL, "UNTIL")
    end_ms = int(dataset.time_ms.max()) + 1
    options = TrainOptions(until_ms, DELAY_MS, domain.alert_rate)
    test = tested(dataset, until_ms, end_ms, exclude_compromised=False)
    return Task(dataset, options, Fold(int(dataset.time_ms.min()), until_ms, end_ms), test)


@dataclass(frozen=True, slots=True)
class Run:
    """The default bundle with one seed."""

    result: FoldResult
    figures: dict[str, float]
    train_s: float
    events_per_s: float


def own(task: Task, seed: int) -> Run:
    """Trains, exports, verifies and scores the default bundle."""
    started = time.monotonic()
    last = started

    def tell(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last > 10.0:
            last = time.monotonic()
            shown = "".join(f"  {name} {value:.4g}" for name, value in progress.figures.items())
            done = f"{progress.done} of {progress.total}"
            print(f"seed {seed}, {last - started:.0f} s  {progress.stage}: {done}{shown}", file=sys.stderr, flush=True)

    trained = train(task.dataset, replace(task.options, seed=seed), tell)
    train_s = time.monotonic() - started
    with TemporaryDirectory(prefix="riskstream-quality-") as folder:
        place = Path(folder) / "bundle"
        domain = task.dataset.domain
        export_bundle(trained, domain, place, name="quality", version="1", command="make quality", clock=SystemClock())
        verified = verify(place, domain=domain)
    probability, seconds = through_the_bundle(TorchScorer(verified, domain), task)
    found = scored(task.dataset, task.test, probability, trained.thresholds)
    values = figures(found)
    said = {name: round(values[name], 5) for name in REPORTED} | {"train_s": round(train_s)}
    print(f"seed {seed}: {json.dumps(said)}", file=sys.stderr, flush=True)
    return Run(FoldResult(task.fold, task.test, found), values, train_s, len(task.test) / seconds)


def through_the_bundle(scorer: TorchScorer, task: Task) -> tuple[NDArray[np.float64], float]:
    """(N,) probabilities of the test events, and the seconds that the scorer itself took, on one thread."""
    parts, seconds = [], 0.0
    for start in range(0, len(task.test), _BATCH):
        rows = task.test[start : start + _BATCH]
        steps, lengths = task.dataset.sequences(rows)
        aggregates = task.dataset.aggregates[rows]
        before = time.perf_counter()
        parts.append(scorer.score(steps, lengths, aggregates).probability)
        seconds += time.perf_counter() - before
    return np.concatenate(parts).astype(np.float64), seconds


def baseline(task: Task) -> tuple[FoldResult, float]:
    """LightGBM on the same features and labels."""
    print("lightgbm", file=sys.stderr, flush=True)
    started = time.monotonic()
    dataset, options = task.dataset, task.options
    parts = split(dataset, options.until_ms, DELAY_MS, options.validation_share)
    known = np.flatnonzero(known_by(dataset, options.until_ms, DELAY_MS))
    data = Data(dataset, parts.train, parts.validation, known)
    model = calibrated(lightgbm(data, 0, 1), data)
    seconds = time.monotonic() - started
    held_out = model(data.features(parts.validation))
    thresholds = choose_thresholds(held_out, data.fraud(parts.validation), options.alert_rate)
    found = scored(dataset, task.test, model(data.features(task.test)), thresholds)
    return FoldResult(task.fold, task.test, found), seconds


if __name__ == "__main__":
    sys.exit(main())
