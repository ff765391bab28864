"""Which events of a batch repeat one of the last 64 event ids of their account."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from stream.features.pool import RowPool, Slots
from stream.features.rows import RING

Bools = NDArray[np.bool_]


def find_duplicates(
    pool: RowPool, slots: Slots, event_hash: NDArray[np.uint64], offset: NDArray[np.int64]
) -> tuple[Bools, Bools]:
    """(duplicate, included), both (B,), of events in offset order.

    Included: the row holds the event already (a replay after a crash). Such an event was folded if its
    offset stands in the ring, and was a duplicate if not: at most 64 events of an account are folded
    between two checkpoints, so those of a replay have not left the ring.
    """
    included = offset < pool["offset"][slots]
    duplicate = included.copy()
    again = np.flatnonzero(included)
    duplicate[again] = ~(pool["ring_offset"][slots[again]] == offset[again, None]).any(axis=1)
    suspects = (pool["ring_hash"][slots] == event_hash[:, None]).any(axis=1) & ~included
    order = np.lexsort((event_hash, slots))
    repeat = (slots[order][1:] == slots[order][:-1]) & (event_hash[order][1:] == event_hash[order][:-1])
    suspects[order[1:][repeat]] = True
    for slot in np.unique(slots[suspects & ~included]).tolist():
        _one_by_one(pool, slot, np.flatnonzero((slots == slot) & ~included), event_hash, duplicate)
    return duplicate, included


def _one_by_one(
    pool: RowPool, slot: int, events: NDArray[np.int64], event_hash: NDArray[np.uint64], duplicate: Bools
) -> None:
    """The rare account with a suspect: follows its last 64 ids through the batch."""
    folded = int(pool["folded"][slot])
    places = np.arange(max(0, folded - RING), folded) % RING
    last: deque[int] = deque(pool["ring_hash"][slot][places].tolist(), maxlen=RING)
    for event in events.tolist():
        identity = int(event_hash[event])
        duplicate[event] = identity in last
        if not duplicate[event]:
            last.append(identity)
