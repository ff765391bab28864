"""Folding labels (verdicts that arrive later) into the rows of accounts.

The account remembers its last 16 labels, so a repeated verdict changes nothing and a revised one is
taken back. A confirmed fraud leaves the account's norm. A fraud whose amount was normal for its account
is *unexplained*: it points at the terminal or the merchant rather than at the card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import LabelBatch
from stream.features.norm import LOG_SCALE, NORM, clipped_to_norm, is_weekend
from stream.features.pool import Slots
from stream.features.rows import FRAUD, GENUINE, LABEL_RING, NEVER, UNEXPLAINED, AccountRows

I64 = NDArray[np.int64]
UNEXPLAINED_TIMES = 2.0
"""A fraud of at most so many times the account's usual amount is unexplained."""
_UNEXPLAINED_LOG = round(LOG_SCALE * math.log(UNEXPLAINED_TIMES))
_HOUR_MS = 3_600_000


@dataclass(slots=True)
class LabelOutcome:
    """(L,) each. `change`: +1 a fraud became known, -1 one was revised, 0 neither; `unexplained`: of those frauds."""

    change: I64
    unexplained: I64
    duplicate: NDArray[np.bool_]
    included: NDArray[np.bool_]


def fold_accounts(rows: AccountRows, slots: Slots, batch: LabelBatch) -> LabelOutcome:
    """Folds L labels in offset order; labels are few, so they go one by one."""
    pool = rows.pool
    size = len(slots)
    outcome = LabelOutcome(
        np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    )
    for i, slot in enumerate(slots.tolist()):
        offset, fraud = int(batch.offset[i]), bool(batch.fraud[i])
        remembered = pool["label_offset"][slot]
        if offset < pool["labels_offset"][slot]:
            known = np.flatnonzero(remembered == offset)
            outcome.included[i] = True
            outcome.duplicate[i] = not len(known)
            for name in ("change", "unexplained"):
                getattr(outcome, name)[i] = pool[f"label_{name}"][slot][known[0]] if len(known) else 0
            continue
        earlier = np.flatnonzero((pool["label_hash"][slot] == batch.event_hash[i]) & (remembered >= 0))
        last = earlier[np.argmax(remembered[earlier])] if len(earlier) else -1
        was_fraud = last >= 0 and bool(pool["label_fraud"][slot][last])
        if last >= 0 and was_fraud == fraud:
            outcome.duplicate[i] = True
            continue
        change = int(fraud) - int(was_fraud)
        was_unexplained = was_fraud and bool(pool["label_unexplained"][slot][last] > 0)
        if NEVER < pool["newest"][slot] < int(batch.known_ms[i]) - rows.horizon_ms:
            # As the account's next event would do; else what a freed row forgot would show.
            rows.begin_anew(np.array([slot]))
        unexplained = _apply(rows, slot, batch, i, change)
        outcome.change[i] = change
        outcome.unexplained[i] = int(unexplained) if change > 0 else -int(was_unexplained) if change < 0 else 0
        _remember(rows, slot, batch, i, outcome)
    return outcome


def _remember(rows: AccountRows, slot: int, batch: LabelBatch, i: int, outcome: LabelOutcome) -> None:
    pool = rows.pool
    place = int(pool["label_count"][slot]) % LABEL_RING
    pool["label_count"][slot] += 1
    pool["label_hash"][slot, place] = batch.event_hash[i]
    pool["label_offset"][slot, place] = batch.offset[i]
    pool["label_fraud"][slot, place] = batch.fraud[i]
    pool["label_change"][slot, place] = outcome.change[i]
    pool["label_unexplained"][slot, place] = outcome.unexplained[i]
    pool["labels_offset"][slot] = batch.offset[i] + 1
    pool.dirty[slot] = True
    rows.unflushed_labels[slot] += 1


def _apply(rows: AccountRows, slot: int, batch: LabelBatch, i: int, change: int) -> bool:
    """What the verdict changes beside the memory of it; whether it is an unexplained fraud."""
    pool = rows.pool
    pool["frauds"][slot] += change
    if change > 0:
        pool["last_fraud"][slot] = max(int(pool["last_fraud"][slot]), int(batch.known_ms[i]))
    time_ms, amount_minor = int(batch.time_ms[i]), int(batch.amount_minor[i])
    # An id may come again after 64 others; it is the newest that is meant.
    meant = np.flatnonzero((pool["ring_hash"][slot] == batch.event_hash[i]) & (pool["ring_time"][slot] > NEVER))
    place = int(meant[np.argmax(pool["ring_offset"][slot][meant])]) if len(meant) else -1
    # Only what the norm holds can be taken out: an event seen since the account began anew.
    if change and int(pool["first"][slot]) <= time_ms <= int(pool["newest"][slot]):
        _change_habits(rows, slot, -change, time_ms)
        _change_norm(rows, slot, -change, place, amount_minor)
    unexplained = bool(batch.fraud[i]) and _is_normal(rows, slot, amount_minor)
    if place >= 0:
        fraud = UNEXPLAINED if unexplained else FRAUD
        pool["ring_verdict"][slot, place] = fraud if batch.fraud[i] else GENUINE
    return unexplained


def _change_habits(rows: AccountRows, slot: int, change: int, time_ms: int) -> None:
    """Takes an event out of the account's habits (-1) or puts it back (+1)."""
    pool = rows.pool
    hour = time_ms // _HOUR_MS
    pool["hours"][slot, hour % 24] = max(int(pool["hours"][slot, hour % 24]) + change, 0)
    if is_weekend(hour):
        pool["weekend"][slot] = max(int(pool["weekend"][slot]) + change, 0)


def _change_norm(rows: AccountRows, slot: int, change: int, place: int, amount_minor: int) -> None:
    """The same of the norm. What the event brought in stands in the ring; once it has left, it is made again."""
    pool = rows.pool
    if place >= 0:
        kept = int(pool["ring_norm"][slot, place])
        if kept == -1 or (kept < 0) != (change > 0):
            return
        brought = kept if kept >= 0 else -2 - kept
        pool["ring_norm"][slot, place] = -2 - kept
    elif amount_minor >= 0:
        scaled = np.rint(LOG_SCALE * np.log1p(np.array([amount_minor / 100.0])))
        brought = int(clipped_to_norm(scaled, *(pool[name][slot : slot + 1] for name in NORM))[0])
    else:
        return
    for name, value in zip(NORM, (1, brought, brought * brought), strict=True):
        pool[name][slot] += change * value


def _is_normal(rows: AccountRows, slot: int, amount_minor: int) -> bool:
    """The amount is at most UNEXPLAINED_TIMES the account's usual one, as it is known now."""
    n, total = int(rows.pool["norm_n"][slot]), max(int(rows.pool["norm_sum"][slot]), 0)
    if amount_minor < 0 or n <= 0:
        return False
    scaled = int(np.rint(LOG_SCALE * np.log1p(amount_minor / 100.0)))
    return scaled * n <= total + n * _UNEXPLAINED_LOG
