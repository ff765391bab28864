"""The documents of `evaluate` and `compare`: prequential folds, or bundles on a period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.dataset import TrainingSet
from models.export import versions
from models.figures import Ranking, Scored
from models.fitting import Index, ProgressListener
from models.leaks import suspicious_columns
from models.prequential import NET, Fold, FoldOptions, FoldResult, run, scored, tested
from models.report.document import data_document, fold_documents, model_document, moment, segment_documents
from models.report.warnings import warnings_of
from models.train import TrainOptions
from stream.errors import ConfigError
from stream.scoring.bundle import VerifiedBundle
from stream.scoring.scorer import TorchScorer

Results = Mapping[str, Sequence[FoldResult]]

_BATCH = 4096
_RESAMPLES = 200


def evaluate_folds(
    dataset: TrainingSet,
    folds: FoldOptions,
    training: TrainOptions,
    listener: ProgressListener,
    *,
    command: str,
) -> dict[str, Any]:
    """Trains and tests every model on every fold. Blocks for minutes. ConfigError when the history is too short."""
    results = run(dataset, folds, training, listener)
    own = results[NET]
    document = document_of(dataset, results, training.label_delay_ms, command)
    train = "from the beginning" if folds.train_ms is None else f"{folds.train_ms / 86_400_000:g} days long"
    document["title"] = f"Prequential evaluation, {folds.folds} folds"
    document["summary"] = (
        f"{training.net.architecture} trained {len(own)} times, each training period {train}, then "
        f"{training.label_delay_ms / 86_400_000:g} days of label delay, then {folds.test_ms / 86_400_000:g} days of "
        f"test: {document['data']['tested_events']:,} events with {document['data']['tested_frauds']:,} frauds."
    )
    document["facts"]["Data"]["known compromised accounts"] = (
        "left out of the test" if folds.exclude_compromised else "tested like all others"
    )
    document["folds"] = fold_documents(own)
    return document


def evaluate_bundles(
    dataset: TrainingSet,
    bundles: Sequence[VerifiedBundle],
    *,
    from_ms: int,
    to_ms: int,
    label_delay_ms: int,
    exclude_compromised: bool,
    command: str,
) -> dict[str, Any]:
    """Scores the labelled events of the period by each bundle. With two, says how they differ. Blocks. ConfigError."""
    index = tested(dataset, from_ms, to_ms, exclude_compromised=exclude_compromised)
    if not len(index):
        raise ConfigError("the period holds no labelled event: choose another --from and --to")
    fold = Fold(from_ms, int(dataset.time_ms[index].min()), int(dataset.time_ms[index].max()) + 1)
    results = {
        name: [FoldResult(fold, index, scored(dataset, index, _probabilities(bundle, dataset, index), thresholds))]
        for name, bundle, thresholds in (
            (name, bundle, bundle.manifest.thresholds) for name, bundle in _named(bundles).items()
        )
    }
    document = document_of(dataset, results, label_delay_ms, command)
    document["title"] = " against ".join(results) if len(results) > 1 else f"{next(iter(results))} on a history"
    document["summary"] = (
        f"{len(index):,} labelled events from {moment(fold.moment_ms)} to {moment(fold.end_ms)} UTC with "
        f"{document['data']['tested_frauds']:,} frauds."
    )
    for name, bundle in _named(bundles).items():
        manifest = bundle.manifest
        document["facts"][f"Bundle {name}"] = {
            "trained until": moment(min(manifest.training.until_ms, 2**42)),
            "on": f"{manifest.training.train_events:,} events, {manifest.training.train_frauds:,} frauds",
            "digest": manifest.digest,
            "command": manifest.training.command,
        }
        if manifest.training.until_ms > fold.moment_ms:
            document["warnings"].append(
                f"{name} was trained with what was known up to {moment(min(manifest.training.until_ms, 2**42))}: "
                "it has seen part of this period, and its figures are too good. Choose a later --from."
            )
    if len(results) == 2:
        first, second = (found[0].scored for found in results.values())
        document["difference"] = difference(first, second)
        low, high = document["difference"]["average_precision"]["interval"]
        document["summary"] += (
            f" Average precision of the second minus the first: "
            f"{document['difference']['average_precision']['value']:+.4f} [{low:+.4f}, {high:+.4f}]."
        )
    return document


def difference(first: Scored, second: Scored, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Second minus first of each ranking figure, with the 95 % interval over paired resamples of accounts."""
    random = np.random.default_rng(seed)
    _, account = np.unique(first.account, return_inverse=True)
    rankings = [Ranking(part.probability, part.fraud) for part in (first, second)]
    values = [ranking.figures() for ranking in rankings]
    drawn: dict[str, list[float]] = {name: [] for name in values[0]}
    for _ in range(_RESAMPLES):
        weight = random.poisson(1.0, int(account.max()) + 1)[account].astype(np.float64)
        one, two = (ranking.figures(weight) for ranking in rankings)
        for name, differences in drawn.items():
            differences.append(two[name] - one[name])
    return {
        name: {
            "value": round(values[1][name] - values[0][name], 6),
            "interval": [round(float(edge), 6) for edge in np.nanquantile(differences, (0.025, 0.975))],
        }
        for name, differences in drawn.items()
        if np.isfinite(differences).any()
    }


def _named(bundles: Sequence[VerifiedBundle]) -> dict[str, VerifiedBundle]:
    """By label; by folder too where two have one label."""
    labels = [bundle.manifest.label for bundle in bundles]
    return {
        label if labels.count(label) == 1 else f"{label} in {bundle.directory}": bundle
        for label, bundle in zip(labels, bundles, strict=True)
    }


def _probabilities(bundle: VerifiedBundle, dataset: TrainingSet, index: Index) -> NDArray[np.float64]:
    scorer = TorchScorer(bundle, dataset.domain)
    parts = []
    for start in range(0, len(index), _BATCH):
        rows = index[start : start + _BATCH]
        steps, lengths = dataset.sequences(rows)
        parts.append(scorer.score(steps, lengths, dataset.aggregates[rows]).probability)
    return np.concatenate(parts).astype(np.float64)


def document_of(dataset: TrainingSet, results: Results, label_delay_ms: int, command: str) -> dict[str, Any]:
    """A report's document but for its title and summary; segments are of the first model."""
    first = next(iter(results.values()))
    models = {name: model_document(found) for name, found in results.items()}
    data = data_document(dataset, label_delay_ms, first)
    return {
        "warnings": warnings_of(models, suspicious_columns(dataset)),
        "models": models,
        "segments": segment_documents(dataset, first),
        "folds": [],
        "data": data,
        "facts": {
            "Data": {
                "fingerprint": data["fingerprint"],
                "events": f"{data['events']:,} of {data['accounts']:,} accounts, {data['frauds']:,} known frauds",
                "period": f"{data['from']} to {data['to']} UTC",
                "label delay": f"{data['label_delay_days']:g} days",
            },
            "How it was made": {
                "command": command,
                "versions": ", ".join(f"{name} {found}" for name, found in versions().items()),
            },
        },
        "limits": [
            "Fraud that nobody reported counts as genuine, here and in training.",
            "Folds follow each other, so their training periods overlap: the spread between folds is too small.",
        ],
    }
