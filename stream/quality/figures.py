"""From the book's sums to figures by model and window: what a dashboard shows.

Quality windows end a maturity before the clock: only there does an event without a fraud label count as genuine.
Frauds whose labels take even longer are estimated, by dividing by the share that is labelled at the event's age
(Horvitz-Thompson with the delay's distribution). Drift windows end at the clock: they need no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream.events.moments import moment_text
from stream.features.batch import F64, I64
from stream.features.spec import window_ms
from stream.quality.book import APPROVE, CALIBRATION_BINS, CELL_MS, DECISION_COUNT, PROBABILITY, Book, Table
from stream.quality.delay import GROUPS

LEAST_DRIFT_EVENTS = 500
"""Fewer say nothing: the PSI of a perfect match is about (bins - 1) / events."""
_FLOOR = 1e-4
"""Shares below this count as this much: an empty bin must not make the PSI infinite."""
_MINOR = 100


def psi(counts: I64 | F64, expected: F64) -> float:
    """Population stability index of counts (K,) against expected shares (K,): sum of (a - e) ln(a / e).

    Below 0.1 nothing moved, above 0.25 much did (Siddiqi, Credit Risk Scorecards, 2006). NaN without counts.
    """
    total = float(counts.sum())
    if total <= 0:
        return float("nan")
    actual, wanted = np.maximum(counts / total, _FLOOR), np.maximum(expected, _FLOOR)
    return float(np.sum((actual - wanted) * np.log(actual / wanted)))


@dataclass(slots=True)
class Quality:
    """One model over one window of mature events. Amounts in major units of the base currency."""

    events: I64 = field(default_factory=lambda: np.zeros(DECISION_COUNT, np.int64))
    amount: F64 = field(default_factory=lambda: np.zeros(DECISION_COUNT))
    labels: I64 = field(default_factory=lambda: np.zeros((2, DECISION_COUNT), np.int64))
    fraud: F64 = field(default_factory=lambda: np.zeros(DECISION_COUNT))
    """Estimated, by decision."""
    fraud_amount: F64 = field(default_factory=lambda: np.zeros(DECISION_COUNT))
    with_model: I64 = field(default_factory=lambda: np.zeros(CALIBRATION_BINS, np.int64))
    predicted: F64 = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    observed: F64 = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))

    def add(self, table: Table, completeness: F64) -> None:
        """`completeness` (2,): of approved and of suspicious events of this age."""
        by_decision = np.where(np.arange(DECISION_COUNT) == APPROVE, completeness[0], completeness[1])
        self.events += table.events
        self.amount += table.amount / _MINOR
        self.labels += table.labels
        self.fraud += table.fraud / by_decision
        self.fraud_amount += table.fraud_amount / _MINOR / by_decision
        self.with_model += table.with_model
        self.predicted += table.predicted
        self.observed += (table.bin_fraud / completeness[:, None]).sum(axis=0)

    @property
    def counts(self) -> dict[str, float]:
        """Numerators and denominators, by name."""
        scored, suspicious = float(self.events.sum()), float(self.events[APPROVE + 1 :].sum())
        # An estimate may pass the whole by chance.
        caught = min(float(self.fraud[APPROVE + 1 :].sum()), suspicious)
        missed = min(float(self.fraud[APPROVE]), scored - suspicious)
        return {
            "scored": scored,
            "suspicious": suspicious,
            "declined": float(self.events[-1]),
            "fraud": caught + missed,
            "caught": caught,
            "missed": missed,
            "false_alarm": suspicious - caught,
            "genuine": scored - caught - missed,
            "labelled_fraud": float(self.labels[0].sum()),
            "labelled_genuine": float(self.labels[1].sum()),
        }

    @property
    def amounts(self) -> dict[str, float]:
        caught, missed = float(self.fraud_amount[APPROVE + 1 :].sum()), float(self.fraud_amount[APPROVE])
        return {"scored": float(self.amount.sum()), "fraud": caught + missed, "caught": caught, "missed": missed}

    @property
    def ratios(self) -> dict[str, float]:
        """Measures by name; without those whose denominator is 0."""
        counts, amounts = self.counts, self.amounts
        pairs = {
            "precision": (counts["caught"], counts["suspicious"]),
            "recall": (counts["caught"], counts["fraud"]),
            "money_recall": (amounts["caught"], amounts["fraud"]),
            "false_positive_rate": (counts["false_alarm"], counts["genuine"]),
            "alert_rate": (counts["suspicious"], counts["scored"]),
            "calibration": (float(self.observed.sum()), float(self.predicted.sum())),
            "calibration_error": (float(np.abs(self.observed - self.predicted).sum()), float(self.with_model.sum())),
        }
        return {name: above / below for name, (above, below) in pairs.items() if below > 0}


@dataclass(slots=True)
class Drift:
    """One model over one window that ends now: PSI by column, and the events behind each."""

    psi: dict[str, float] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Figures:
    """All figures at one moment of event time. Keys are (model, window)."""

    clock_ms: int
    quality: dict[tuple[str, str], Quality]
    drift: dict[tuple[str, str], Drift]
    completeness: F64
    """(2,): share of approved, and of suspicious, frauds that are labelled when they are mature."""

    def as_json(self) -> dict[str, object]:
        """Plain values: a list of figures by model and window."""
        return {
            "clock": moment_text(self.clock_ms),
            "label_completeness": dict(zip(GROUPS, self.completeness.tolist(), strict=True)),
            "quality": [
                {"model": model, "window": window, "ratios": of.ratios, "events": of.counts, "amounts": of.amounts}
                for (model, window), of in sorted(self.quality.items())
            ],
            "drift": [
                {"model": model, "window": window, "psi": of.psi, "events": of.events}
                for (model, window), of in sorted(self.drift.items())
            ],
        }


def figures(book: Book, windows: Sequence[str]) -> Figures:
    """The figures over windows such as "1d", "7d"."""
    ends = {window: window_ms(window) // CELL_MS for window in windows}
    now = book.clock_ms
    mature = (now - book.maturity_ms) // CELL_MS
    numbers = np.array(sorted((n for n in book.cells if n < mature), reverse=True), dtype=np.int64)
    known = book.delay.completeness(now, now - (numbers * CELL_MS + CELL_MS // 2))
    share = {int(number): known[:, place] for place, number in enumerate(numbers.tolist())}
    quality: dict[tuple[str, str], Quality] = {}
    counted: dict[tuple[str, str], dict[str, I64]] = {}
    for window, number, model, table in _tables(book, ends, mature):
        quality.setdefault((model, window), Quality()).add(table, share[number])
    for window, _, model, table in _tables(book, ends, now // CELL_MS + 1):
        sums = counted.setdefault((model, window), {})
        for name, counts in table.drift.items():
            sums[name] = sums[name] + counts if name in sums else counts
    drift = {key: _drift(book, key[0], sums) for key, sums in counted.items() if sums}
    at_maturity = book.delay.completeness(now, np.array([book.maturity_ms]))[:, 0]
    return Figures(now, quality, drift, at_maturity)


def _tables(book: Book, windows: Mapping[str, int], end: int) -> Iterator[tuple[str, int, str, Table]]:
    """(window, cell, model, table) of every window's cells: those of [end - length, end)."""
    for window, length in windows.items():
        for number, cell in book.cells.items():
            if end - length <= number < end:
                for model, table in cell.tables.items():
                    yield window, number, book.models[model], table


def _drift(book: Book, model: str, sums: Mapping[str, NDArray[np.int64]]) -> Drift:
    reference, drift = book.references[model], Drift()
    shares = {PROBABILITY: reference.score, **reference.columns}
    for name, counts in sums.items():
        drift.events[name] = int(counts.sum())
        if drift.events[name] >= LEAST_DRIFT_EVENTS:
            drift.psi[name] = psi(counts, shares[name].all_shares())
    return drift
