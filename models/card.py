"""The model card of a bundle: what data, which features matter, figures with intervals, limits, how it was made."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from models.dataset import FRAUD, TrainingSet
from models.export import versions
from models.leaks import suspicious_columns
from models.prequential import Fold, FoldResult, scored
from models.pruning import Pruning
from models.report.document import data_document, model_document, moment, segment_documents
from models.report.page import render
from models.report.warnings import warnings_of
from models.train import TrainedModel, plain_options

CARD_FILE = "card.json"
PAGE_FILE = "report.html"


def card_files(
    trained: TrainedModel, dataset: TrainingSet, *, name: str, version: str, command: str
) -> dict[str, bytes]:
    """File name -> content: the card for machines and for people."""
    document = card(trained, dataset, label=f"{name}@{version}", command=command)
    return {
        CARD_FILE: (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(),
        PAGE_FILE: render(document).encode(),
    }


def card(trained: TrainedModel, dataset: TrainingSet, *, label: str, command: str) -> dict[str, Any]:
    """The document of a trained model's card: its figures are of the validation period."""
    options, validation = trained.options, trained.validation
    times = dataset.time_ms[validation.index]
    fold = Fold(max(options.from_ms, int(dataset.time_ms.min())), int(times.min()), int(times.max()) + 1)
    result = FoldResult(
        fold, validation.index, scored(dataset, validation.index, validation.probability, trained.thresholds)
    )
    model = model_document([result])
    data = data_document(dataset, options.label_delay_ms, [result])
    importance = {
        "groups": _rounded(trained.importance.groups),
        "columns": _rounded(trained.importance.columns),
        "average_precision": round(trained.importance.average_precision, 6),
        "events": trained.importance.events,
    }
    return {
        "title": f"Model card of {label}",
        "summary": (
            f"{options.net.architecture} for {data['domain']}, trained on {trained.train_events:,} events with "
            f"{trained.train_frauds:,} frauds, judged on {trained.validation_events:,} later events with "
            f"{trained.validation_frauds:,} frauds."
        ),
        "warnings": warnings_of({label: model}, suspicious_columns(dataset)),
        "models": {label: model},
        "segments": segment_documents(dataset, [result]),
        "importance": importance,
        "folds": [],
        "facts": {
            "Data": {
                "fingerprint": data["fingerprint"],
                "events": f"{data['events']:,} of {data['accounts']:,} accounts, {data['frauds']:,} known frauds",
                "period": f"{data['from']} to {data['to']} UTC",
                "label delay": f"{data['label_delay_days']:g} days; no label that became known after "
                f"{moment(min(options.until_ms, int(dataset.time_ms.max())))} took part",
                "figures are of": f"{moment(fold.moment_ms)} to {moment(fold.end_ms)} UTC, which the nets judged "
                "had not seen",
                "features": f"{len(trained.step_columns)} step columns, {len(trained.aggregate_columns)} aggregates, "
                f"spec {data['spec_id']}",
            },
            **({} if trained.pruning is None else {"Pruning": _pruning(trained.pruning)}),
            "How it was made": {
                "command": command,
                "versions": ", ".join(f"{name} {found}" for name, found in versions().items()),
                "options": json.dumps(plain_options(options), sort_keys=True),
            },
        },
        "limits": limits(trained, dataset),
    }


def limits(trained: TrainedModel, dataset: TrainingSet) -> list[str]:
    """What a reader must know before trusting the figures."""
    fraud = dataset.label[trained.validation.index] == FRAUD
    found = [
        "The validation period also chose the epoch, the calibration and the thresholds: its figures are on the "
        "bright side. `riskstream evaluate` gives figures of periods that chose nothing.",
        "Fraud that nobody reported counts as genuine, here and in training.",
        "The figures hold while payments look as they did in that period: watch the drift of scores and features.",
    ]
    if trained.options.refit:
        found.append(
            "The nets in the bundle were trained again on all that was known, the validation period included; the "
            "figures are of nets that had not seen it."
        )
    if int(fraud.sum()) < 100:
        found.append(f"Only {int(fraud.sum())} frauds were there to validate on: the intervals are wide.")
    if np.isnan(dataset.amount).any():
        found.append(f"{float(np.isnan(dataset.amount).mean()):.2%} of the amounts had no exchange rate.")
    return found


def _pruning(pruning: Pruning) -> dict[str, str]:
    (quality, pruned), (cost, less) = pruning.average_precision, pruning.us_per_event
    return {
        "hidden units": f"{pruning.hidden[0]} to {pruning.hidden[1]} in each branch, "
        f"{pruning.width[0]} to {pruning.width[1]} in the first layer over the aggregates",
        "average precision": f"{quality:.4f} to {pruned:.4f} on the validation events",
        "cost": f"{cost:.1f} to {less:.1f} microseconds per event in batches of 256, one net, measured while training",
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
