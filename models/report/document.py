"""The document of a report as plain JSON values: what the page shows and what machines read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.dataset import FRAUD, TrainingSet
from models.figures import Ranking, Scored, at_threshold, curves, figures, intervals, joined, reliability
from models.fitting import Index
from models.prequential import FoldResult

_AMOUNTS = (10.0, 50.0, 200.0, 1000.0)
_AGES = (7.0, 30.0, 180.0)
_AGE_COLUMN = "account_age_days"
_MOST_VALUES = 12


def model_document(results: Sequence[FoldResult]) -> dict[str, Any]:
    """What is said of one model: figures by fold, their mean and spread, intervals and curves over all folds."""
    by_fold = [figures(result.scored) for result in results]
    whole = joined([result.scored for result in results])
    names = list(by_fold[0])
    values = {name: np.array([fold[name] for fold in by_fold], dtype=np.float64) for name in names}
    return {
        "mean": {name: _number(_mean(found)) for name, found in values.items()},
        "spread": {name: _number(float(np.nanstd(found))) if _any(found) else None for name, found in values.items()},
        "interval": {name: [_number(low), _number(high)] for name, (low, high) in intervals(whole).items()},
        "folds": [{name: _number(value) for name, value in fold.items()} for fold in by_fold],
        "curves": curves(whole),
        "reliability": reliability(whole),
    }


def data_document(dataset: TrainingSet, label_delay_ms: int, results: Sequence[FoldResult]) -> dict[str, Any]:
    """What was evaluated on."""
    tested = [result.scored for result in results]
    return {
        "fingerprint": dataset.fingerprint(),
        "domain": dataset.domain.name,
        "spec_id": dataset.domain.spec_id,
        "events": len(dataset),
        "accounts": int(dataset.account.max(initial=-1)) + 1,
        "frauds": int((dataset.label == FRAUD).sum()),
        "from": moment(int(dataset.time_ms.min())),
        "to": moment(int(dataset.time_ms.max())),
        "label_delay_days": label_delay_ms / 86_400_000,
        "tested_events": sum(len(part) for part in tested),
        "tested_frauds": sum(int(part.fraud.sum()) for part in tested),
    }


def fold_documents(results: Sequence[FoldResult]) -> list[dict[str, Any]]:
    """When each fold trained and tested, and on how much."""
    return [
        {
            "train_from": moment(result.fold.from_ms),
            "trained_at": moment(result.fold.moment_ms),
            "tested_to": moment(result.fold.end_ms),
            "events": len(result.scored),
            "frauds": int(result.scored.fraud.sum()),
        }
        for result in results
    ]


def segment_documents(dataset: TrainingSet, results: Sequence[FoldResult]) -> dict[str, list[dict[str, Any]]]:
    """Figures of one model by channel, country, amount, account age and what else the set can be split by."""
    index = np.concatenate([result.index for result in results])
    whole = joined([result.scored for result in results])
    return {
        field: [_segment(name, whole.take(rows)) for name, rows in parts if rows.any()]
        for field, parts in segments(dataset, index)
    }


def segments(dataset: TrainingSet, index: Index) -> Iterator[tuple[str, list[tuple[str, NDArray[np.bool_]]]]]:
    """By field: the names of its parts and which of the events `index` are in each."""
    for field, segment in dataset.segments.items():
        code = segment.code[index]
        counts = np.bincount(code, minlength=len(segment.names))
        order = [place for place in np.argsort(-counts, kind="stable").tolist() if counts[place]]
        parts = [(segment.names[place], code == place) for place in order[:_MOST_VALUES]]
        if len(order) > _MOST_VALUES:
            parts.append((f"{len(order) - _MOST_VALUES} others", np.isin(code, order[_MOST_VALUES:])))
        yield field, parts
    currency = dataset.domain.base_currency
    yield "amount", _bands(dataset.amount[index], _AMOUNTS, lambda low, high: f"{_span(low, high)} {currency}")
    names = [column.name for column in dataset.domain.aggregate_columns]
    if _AGE_COLUMN in names:
        ages = dataset.aggregates[index, names.index(_AGE_COLUMN)]
        yield "account age", _bands(ages, _AGES, lambda low, high: f"{_span(low, high)} days")


def _bands(
    values: NDArray[Any], edges: Sequence[float], name: Callable[[float | None, float | None], str]
) -> list[tuple[str, NDArray[np.bool_]]]:
    which = np.searchsorted(np.array(edges), values, side="right")
    missing = np.isnan(values)
    ends: list[float | None] = [None, *edges, None]
    parts = [(name(ends[place], ends[place + 1]), (which == place) & ~missing) for place in range(len(edges) + 1)]
    return [*parts, ("(none)", missing)]


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return f"below {high:g}"
    return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"


def _segment(name: str, scored: Scored) -> dict[str, Any]:
    ranked = Ranking(scored.probability, scored.fraud).figures()
    reviewed = at_threshold(scored, scored.review)
    found: Mapping[str, float] = {
        "auc": ranked["auc"],
        "average_precision": ranked["average_precision"],
        "recall_at_review": reviewed["recall"],
        "precision_at_review": reviewed["precision"],
        "alert_rate": reviewed["alert_rate"],
        "mean_probability": float(scored.probability.mean()),
        "fraud_rate": float(scored.fraud.mean()),
    }
    counts = {"name": name, "events": len(scored), "frauds": int(scored.fraud.sum())}
    return counts | {figure: _number(value) for figure, value in found.items()}


def moment(time_ms: int) -> str:
    """2026-11-23 16:38, UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _any(values: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(values).any())


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if _any(values) else float("nan")
