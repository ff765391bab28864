"""The join of scores and labels by identity, in bounded memory.

What every event adds to (denominators, calibration, drift) is kept as sums per hour of event time and model: a
`Table`. What a label must find again (decision, amount, probability) is kept per event, as an `ENTRY` of 24 bytes
in its hour. When there are too many entries, half of the *approved* ones are forgotten, by the bits of their hash;
a fraud among the others counts double. Suspicious events are never thinned, so precision is exact, and recall stays
unbiased.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import F64, I64
from stream.features.columns import hash_ids
from stream.quality.delay import LabelDelay
from stream.scoring.lineup import CHALLENGERS
from stream.scoring.reference import Distribution, Reference

CELL_MS = 3_600_000
DECISION_COUNT = 3
APPROVE = 0
CALIBRATION_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
CALIBRATION_BINS = len(CALIBRATION_EDGES) + 1
NO_PROBABILITY = 255
MOST_MODELS = 200
OTHER = "other"
PROBABILITY = "probability"
"""Its place among the columns of drift."""

UNKNOWN, FRAUD, GENUINE = 0, 1, 2
_MOST_HALVINGS = 16
_MOST_WAITING = 200_000

SALTS: Mapping[str, np.uint64] = dict(zip(CHALLENGERS, hash_ids(CHALLENGERS), strict=True))
"""By role: a challenger's score of an event is found under the event's identity XOR this."""

ENTRY = np.dtype(
    [
        ("amount", "<i8"),
        ("weight", "<f4"),
        ("model", "u1"),
        ("decision", "u1"),
        ("bin", "u1"),
        ("verdict", "u1"),
    ]
)
U64 = NDArray[np.uint64]
Entries = NDArray[np.void]


@dataclass(slots=True)
class ScoreColumns:
    """N scores as columns."""

    identity: U64
    time_ms: I64
    amount_minor: I64
    """1/100 of the base currency; negative without a rate."""
    probability: F64
    """NaN: rules only."""
    decision: I64
    """Place in events.records.DECISIONS."""
    models: list[str]
    features: list[Mapping[str, float | None] | None]

    def __len__(self) -> int:
        return len(self.models)


@dataclass(slots=True)
class LabelColumns:
    """N labels as columns; `time_ms` is their event's."""

    identity: U64
    time_ms: I64
    known_ms: I64
    fraud: NDArray[np.bool_]

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> LabelColumns:
        return LabelColumns(self.identity[index], self.time_ms[index], self.known_ms[index], self.fraud[index])

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(slots=True)
class Verdicts:
    """What N labels did to their entries."""

    old: I64
    changed: NDArray[np.bool_]
    new_fraud: NDArray[np.bool_]
    group: I64
    """Place in delay.GROUPS."""
    weight: F64


class Table:
    """Sums of one model in one hour. Fraud is weighted by the sampling, not yet by the labels' delay."""

    __slots__ = ("amount", "bin_fraud", "drift", "events", "fraud", "fraud_amount", "labels", "predicted", "with_model")

    def __init__(self) -> None:
        self.events = np.zeros(DECISION_COUNT, np.int64)
        self.amount = np.zeros(DECISION_COUNT, np.int64)
        self.with_model = np.zeros(CALIBRATION_BINS, np.int64)
        self.predicted = np.zeros(CALIBRATION_BINS)
        self.labels = np.zeros((2, DECISION_COUNT), np.int64)
        """Labels as they are, unweighted: (fraud, genuine) by decision."""
        self.fraud = np.zeros(DECISION_COUNT)
        self.fraud_amount = np.zeros(DECISION_COUNT)
        self.bin_fraud = np.zeros((2, CALIBRATION_BINS))
        """By (approved, suspicious): their labels have delays of their own."""
        self.drift: dict[str, I64] = {}
        """Column (PROBABILITY among them) -> events by the reference's bins, the missing last."""


@dataclass(slots=True)
class Cell:
    """One hour of event time: sums by model, and the entries that labels look up."""

    tables: dict[int, Table] = field(default_factory=dict)
    halvings: int = 0
    identity: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Sorted, as far as `fresh` is merged."""
    entries: Entries = field(default_factory=lambda: np.zeros(0, ENTRY))
    fresh: list[tuple[U64, Entries]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.identity) + sum(len(identity) for identity, _ in self.fresh)

    def merge(self) -> None:
        """Sorts what was added since the last look-up."""
        if self.fresh:
            identity = np.concatenate([self.identity, *(part for part, _ in self.fresh)])
            order = np.argsort(identity, kind="stable")
            self.identity = identity[order]
            self.entries = np.concatenate([self.entries, *(part for _, part in self.fresh)])[order]
            self.fresh.clear()

    def find(self, identity: U64) -> I64:
        """The place of each identity (N,), -1 where it is not here."""
        self.merge()
        if len(self.identity) == 0:
            return np.full(len(identity), -1)
        places = np.minimum(np.searchsorted(self.identity, identity), len(self.identity) - 1)
        return np.where(self.identity[places] == identity, places, -1).astype(np.int64)

    def thin(self, halvings: int) -> None:
        """Forgets approved, unlabelled entries outside the sample of this rate."""
        self.halvings = max(self.halvings, halvings)
        self.merge()
        kept = _in_sample(self.identity, self.halvings) | (self.entries["decision"] != APPROVE)
        kept |= self.entries["verdict"] != UNKNOWN
        self.identity, self.entries = self.identity[kept], self.entries[kept]


class Book:
    """Scores and labels of the horizon. The clock is the newest event time; nothing here reads another one.

    One thread. `outcomes` counts what became of every score and label that was added.
    """

    def __init__(self, *, maturity_ms: int, horizon_ms: int, most_entries: int) -> None:
        """`horizon_ms`: how long behind the clock events are kept."""
        self.maturity_ms, self.horizon_ms, self.most_entries = maturity_ms, horizon_ms, most_entries
        self.clock_ms = 0
        self.cells: dict[int, Cell] = {}
        self.models: list[str] = []
        self.references: dict[str, Reference] = {}
        """By model; events of a model that is not here have no drift."""
        self.delay = LabelDelay(maturity_ms)
        self.halvings = 0
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.waiting_labels: dict[int, tuple[int, int, bool]] = {}
        """Identity -> (event's time, known, fraud) of labels whose score has not come."""

    def use(self, references: Mapping[str, Reference]) -> None:
        """Measures drift against these from now on; what was counted in other bins of a model is thrown away."""
        for name, reference in references.items():
            known = self.references.get(name)
            if known is not None and known != reference and name in self.models:
                for cell in self.cells.values():
                    if (table := cell.tables.get(self.models.index(name))) is not None:
                        table.drift.clear()
            self.references[name] = reference

    @property
    def stored(self) -> int:
        """Entries that labels can find."""
        return sum(map(len, self.cells.values()))

    # --- scores

    def add_scores(self, scores: ScoreColumns, shadows: Sequence[ScoreColumns] = ()) -> None:
        """Counts N scores and remembers them for their labels; `shadows` are the challengers' of the same events.

        A challenger's identities are salted (see SALTS): its entries lie beside the champion's.
        """
        if len(scores) == 0:
            return
        self._advance(int(scores.time_ms.max()))
        for shadow in shadows:
            self._enter(shadow)
        old = self._enter(scores)
        self.outcomes["scores", "too_old"] += old
        self.outcomes["scores", "counted"] += len(scores) - old
        if self.stored > self.most_entries:
            self._make_room()
        if self.waiting_labels:
            self._join_waiting(scores.identity)

    def _enter(self, scores: ScoreColumns) -> int:
        """Returns how many are older than the horizon, and were left out."""
        cell_of = scores.time_ms // CELL_MS
        codes = {name: self._model(name) for name in dict.fromkeys(scores.models)}
        model_of = np.array([codes[name] for name in scores.models], dtype=np.int64)
        bins = np.searchsorted(CALIBRATION_EDGES, scores.probability, side="right")
        bins = np.where(np.isnan(scores.probability), NO_PROBABILITY, bins)
        old = cell_of < self._first_cell()
        for number in np.unique(cell_of[~old]).tolist():
            here = np.flatnonzero(cell_of == number)
            cell = self.cells.get(number)
            if cell is None:
                cell = self.cells[number] = Cell(halvings=self._halvings_of_a_new_cell())
            for model in np.unique(model_of[here]).tolist():
                self._count(cell.tables.setdefault(model, Table()), scores, here[model_of[here] == model], bins)
            self._remember(cell, scores, here, model_of, bins)
        return int(old.sum())

    def _count(self, table: Table, scores: ScoreColumns, index: I64, bins: I64) -> None:
        decision = scores.decision[index]
        table.events += np.bincount(decision, minlength=DECISION_COUNT)
        np.add.at(table.amount, decision, np.maximum(scores.amount_minor[index], 0))
        with_model = index[bins[index] != NO_PROBABILITY]
        table.with_model += np.bincount(bins[with_model], minlength=CALIBRATION_BINS)
        probability = scores.probability[with_model]
        table.predicted += np.bincount(bins[with_model], probability, minlength=CALIBRATION_BINS)
        reference = self.references.get(scores.models[index[0]])
        if reference is None:
            return
        _add_bins(table.drift, PROBABILITY, reference.score, probability)
        features = [values for values in (scores.features[i] for i in index.tolist()) if values is not None]
        if features:
            for name, shares in reference.columns.items():
                column = np.array([values.get(name) for values in features], dtype=np.float64)
                _add_bins(table.drift, name, shares, column)

    def _remember(self, cell: Cell, scores: ScoreColumns, index: I64, model_of: I64, bins: I64) -> None:
        kept = index[_in_sample(scores.identity[index], cell.halvings) | (scores.decision[index] != APPROVE)]
        entries = np.zeros(len(kept), ENTRY)
        entries["amount"] = np.maximum(scores.amount_minor[kept], 0)
        entries["model"], entries["decision"], entries["bin"] = model_of[kept], scores.decision[kept], bins[kept]
        cell.fresh.append((scores.identity[kept], entries))

    def _model(self, name: str) -> int:
        if name not in self.models:
            if len(self.models) >= MOST_MODELS:
                name = OTHER
            if name not in self.models:
                self.models.append(name)
        return self.models.index(name)

    # --- labels

    def add_labels(self, labels: LabelColumns) -> None:
        """Joins N labels; those whose score has not come wait for it."""
        while len(labels):
            # A label may be repeated or revised within a batch: first ones first.
            _, first = np.unique(labels.identity, return_index=True)
            now = np.zeros(len(labels), np.bool_)
            now[first] = True
            self._join(labels.take(now))
            labels = labels.take(~now)

    def _join(self, labels: LabelColumns) -> None:
        cell_of = labels.time_ms // CELL_MS
        for number in np.unique(cell_of).tolist():
            here = labels.take(cell_of == number)
            cell = self.cells.get(number)
            if cell is None and number < self._first_cell():
                self.outcomes["labels", "too_old"] += len(here)
                continue
            places = cell.find(here.identity) if cell is not None else np.full(len(here), -1)
            if cell is not None:
                found = places >= 0
                verdicts = self._apply(cell, places[found], here.take(found))
                self._learn(verdicts, here.take(found))
                self._join_shadows(cell, here)
            sampled = _in_sample(here.identity, cell.halvings if cell is not None else 0)
            # Outside the sample it is of an approved event, or quicker than its score, which labels seldom are.
            self.outcomes["labels", "unsampled"] += int(((places < 0) & ~sampled).sum())
            for row in np.flatnonzero((places < 0) & sampled).tolist():
                self.waiting_labels[int(here.identity[row])] = (
                    int(here.time_ms[row]),
                    int(here.known_ms[row]),
                    bool(here.fraud[row]),
                )
        while len(self.waiting_labels) > _MOST_WAITING:
            del self.waiting_labels[next(iter(self.waiting_labels))]
            self.outcomes["labels", "unmatched"] += 1

    def _apply(self, cell: Cell, places: I64, labels: LabelColumns) -> Verdicts:
        """Puts the verdicts into the entries and the sums."""
        entries = cell.entries[places]
        new = np.where(labels.fraud, FRAUD, GENUINE)
        old = entries["verdict"].astype(np.int64)
        changed = old != new
        # The weight is that of the sampling at this moment, and is kept: a revision takes back what was added.
        first = (entries["weight"] == 0) & changed
        approved = entries["decision"] == APPROVE
        entries["weight"][first] = np.where(approved[first], 2.0**cell.halvings, 1.0)
        entries["verdict"] = new
        cell.entries[places] = entries
        sign = np.where(new == FRAUD, 1, np.where(old == FRAUD, -1, 0))
        sign[~changed] = 0
        for model in np.unique(entries["model"]).tolist():
            chosen = (entries["model"] == model) & changed
            _add_verdicts(cell.tables[model], entries[chosen], old[chosen], new[chosen], sign[chosen])
        return Verdicts(old, changed, sign == 1, np.where(approved, 0, 1), entries["weight"].astype(np.float64))

    def _learn(self, verdicts: Verdicts, labels: LabelColumns) -> None:
        """Counts the labels, and learns how long they took."""
        new, fraud = verdicts.old == UNKNOWN, verdicts.new_fraud
        self.outcomes["labels", "joined"] += int(new.sum())
        self.outcomes["labels", "repeated"] += int((~verdicts.changed).sum())
        self.outcomes["labels", "revised"] += int((verdicts.changed & ~new).sum())
        self.delay.add(labels.time_ms[fraud], labels.known_ms[fraud], verdicts.group[fraud], verdicts.weight[fraud])

    def _join_shadows(self, cell: Cell, labels: LabelColumns) -> None:
        """The same verdicts for what the challengers said of these events."""
        if len(self.models) < 2:
            return
        for salt in SALTS.values():
            places = cell.find(labels.identity ^ salt)
            found = places >= 0
            if found.any():
                self._apply(cell, places[found], labels.take(found))

    def _join_waiting(self, identity: U64) -> None:
        come = dict.fromkeys(key for key in identity.tolist() if key in self.waiting_labels)
        if come:
            times, known, fraud = zip(*[self.waiting_labels.pop(key) for key in come], strict=True)
            keys = np.array(list(come), np.uint64)
            self._join(LabelColumns(keys, np.array(times), np.array(known), np.array(fraud)))

    # --- memory

    def _first_cell(self) -> int:
        return (self.clock_ms - self.horizon_ms) // CELL_MS

    def _advance(self, time_ms: int) -> None:
        """Moves the clock; when it enters a new hour, forgets what has left the horizon."""
        entered = time_ms // CELL_MS > self.clock_ms // CELL_MS
        self.clock_ms = max(self.clock_ms, time_ms)
        if entered:
            first = self._first_cell()
            for number in [number for number in self.cells if number < first]:
                del self.cells[number]
            self.delay.forget_before(self.clock_ms - self.horizon_ms)
            gone = [key for key, (time, _, _) in self.waiting_labels.items() if time // CELL_MS < first]
            for key in gone:
                del self.waiting_labels[key]
            self.outcomes["labels", "unmatched"] += len(gone)

    def _halvings_of_a_new_cell(self) -> int:
        if self.halvings and self.stored * 4 < self.most_entries:
            self.halvings -= 1
        return self.halvings

    def _make_room(self) -> None:
        while self.stored > self.most_entries and self.halvings < _MOST_HALVINGS:
            self.halvings += 1
            for cell in self.cells.values():
                cell.thin(self.halvings)
        for number in sorted(self.cells):
            # Suspicious events alone are too many: the oldest hours can no longer be labelled.
            if self.stored <= self.most_entries:
                break
            cell = self.cells[number]
            cell.identity, cell.entries, cell.fresh = cell.identity[:0], cell.entries[:0], []


def _in_sample(identity: U64, halvings: int) -> NDArray[np.bool_]:
    """Whether the top `halvings` bits of each identity's hash are 0: a share of 2**-halvings."""
    if halvings == 0:
        return np.ones(len(identity), np.bool_)
    return np.asarray((identity >> np.uint64(64 - halvings)) == 0)


def _add_bins(drift: dict[str, I64], name: str, reference: Distribution, values: F64) -> None:
    # In float32, as the model saw them: a value that is an edge must not fall beside it.
    counts = reference.counts(values.astype(np.float32))
    drift[name] = drift[name] + counts if name in drift else counts


def _add_verdicts(table: Table, entries: Entries, old: I64, new: I64, sign: I64) -> None:
    decision = entries["decision"].astype(np.int64)
    for row, verdict in enumerate((FRAUD, GENUINE)):
        table.labels[row] += np.bincount(decision[new == verdict], minlength=DECISION_COUNT)
        table.labels[row] -= np.bincount(decision[old == verdict], minlength=DECISION_COUNT)
    weight = sign * entries["weight"].astype(np.float64)
    table.fraud += np.bincount(decision, weight, minlength=DECISION_COUNT)
    table.fraud_amount += np.bincount(decision, weight * entries["amount"], minlength=DECISION_COUNT)
    binned = entries["bin"] != NO_PROBABILITY
    group = np.where(decision == APPROVE, 0, 1)
    np.add.at(table.bin_fraud, (group[binned], entries["bin"][binned].astype(np.int64)), weight[binned])
