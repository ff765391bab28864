"""Folding labels (verdicts that arrive later) into the rows of accounts.

The account remembers its last 16 labels, so a repeated verdict changes nothing and a revised one is
taken back. A confirmed fraud leaves the account's norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import LabelBatch
from stream.features.pool import Slots
from stream.features.rows import LABEL_RING, NEVER, AccountRows
from stream.features.view import LOG_SCALE

I64 = NDArray[np.int64]


@dataclass(slots=True)
class LabelOutcome:
    """(L,) each. `change`: +1 a fraud became known, -1 one was revised, 0 neither."""

    change: I64
    duplicate: NDArray[np.bool_]
    included: NDArray[np.bool_]


def fold_accounts(rows: AccountRows, slots: Slots, batch: LabelBatch) -> LabelOutcome:
    """Folds L labels in offset order; labels are few, so they go one by one."""
    pool = rows.pool
    size = len(slots)
    outcome = LabelOutcome(np.zeros(size, np.int64), np.zeros(size, np.bool_), np.zeros(size, np.bool_))
    for i, slot in enumerate(slots.tolist()):
        offset, fraud = int(batch.offset[i]), bool(batch.fraud[i])
        remembered = pool["label_offset"][slot]
        if offset < pool["labels_offset"][slot]:
            known = np.flatnonzero(remembered == offset)
            outcome.included[i] = True
            outcome.duplicate[i] = not len(known)
            outcome.change[i] = pool["label_change"][slot][known[0]] if len(known) else 0
            continue
        earlier = np.flatnonzero((pool["label_hash"][slot] == batch.event_hash[i]) & (remembered >= 0))
        last = earlier[np.argmax(remembered[earlier])] if len(earlier) else -1
        was_fraud = last >= 0 and bool(pool["label_fraud"][slot][last])
        if last >= 0 and was_fraud == fraud:
            outcome.duplicate[i] = True
            continue
        change = int(fraud) - int(was_fraud)
        outcome.change[i] = change
        if NEVER < pool["newest"][slot] < int(batch.known_ms[i]) - rows.horizon_ms:
            # As the account's next event would do; else what a freed row forgot would show.
            rows.begin_anew(np.array([slot]))
        _remember(rows, slot, batch, i, change)
    return outcome


def _remember(rows: AccountRows, slot: int, batch: LabelBatch, i: int, change: int) -> None:
    pool = rows.pool
    place = int(pool["label_count"][slot]) % LABEL_RING
    pool["label_count"][slot] += 1
    pool["label_hash"][slot, place] = batch.event_hash[i]
    pool["label_offset"][slot, place] = batch.offset[i]
    pool["label_fraud"][slot, place] = batch.fraud[i]
    pool["label_change"][slot, place] = change
    pool["labels_offset"][slot] = batch.offset[i] + 1
    pool["frauds"][slot] += change
    if change > 0:
        pool["last_fraud"][slot] = max(int(pool["last_fraud"][slot]), int(batch.known_ms[i]))
    time_ms = int(batch.time_ms[i])
    # Only what the norm holds can be taken out: an event seen since the account began anew.
    if change and int(pool["first"][slot]) <= time_ms <= int(pool["newest"][slot]):
        _change_norm(rows, slot, -change, time_ms, int(batch.amount_minor[i]))
    pool.dirty[slot] = True
    rows.unflushed_labels[slot] += 1


def _change_norm(rows: AccountRows, slot: int, change: int, time_ms: int, amount_minor: int) -> None:
    """Takes an event out of the account's norm (-1) or puts it back (+1); its amount only if it has a rate."""
    pool = rows.pool
    hour = time_ms // 3_600_000 % 24
    pool["hours"][slot, hour] = max(int(pool["hours"][slot, hour]) + change, 0)
    if amount_minor >= 0:
        scaled = int(np.rint(LOG_SCALE * np.log1p(amount_minor / 100.0)))
        pool["norm_n"][slot] += change
        pool["norm_sum"][slot] += change * scaled
        pool["norm_squares"][slot] += change * scaled * scaled
