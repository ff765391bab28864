"""Which events may teach a model that is trained at a given time, and which may judge it meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.dataset import FRAUD, UNKNOWN, TrainingSet
from stream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into a training set, ascending."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    validation_from_ms: int
    """Validation events are at or after; no training label became known after."""


def known_by(dataset: TrainingSet, moment_ms: int, label_delay_ms: int) -> NDArray[np.bool_]:
    """(N,): the events whose label was known at the moment, and old enough that it had to be.

    The second half matters: of younger events only the quickly reported frauds are known, which would
    teach that fraud is common lately.
    """
    known: NDArray[np.bool_] = (dataset.label != UNKNOWN) & (dataset.known_ms <= moment_ms)
    known &= dataset.time_ms <= moment_ms - label_delay_ms
    return known


def split(
    dataset: TrainingSet, until_ms: int, label_delay_ms: int, validation_share: float, *, from_ms: int = 0
) -> Split:
    """Validation: the last `validation_share` of the events known by `until_ms`. Train: what was known when it began.

    So between the two lies a gap of one delay, as between training and use. Events before `from_ms` are in
    neither. ConfigError when either part lacks fraud or genuine events.
    """
    recent = dataset.time_ms >= from_ms
    usable = known_by(dataset, until_ms, label_delay_ms) & recent
    times = np.sort(dataset.time_ms[usable])
    if len(times) == 0:
        raise ConfigError("no event has a label that was known by the end of training: choose a later --until")
    start_ms = int(times[int(len(times) * (1.0 - validation_share))])
    validation = np.flatnonzero(usable & (dataset.time_ms >= start_ms))
    train = np.flatnonzero(known_by(dataset, start_ms, label_delay_ms) & (dataset.time_ms < start_ms) & recent)
    for part, index in (("training", train), ("validation", validation)):
        frauds = int((dataset.label[index] == FRAUD).sum())
        if frauds == 0 or frauds == len(index):
            raise ConfigError(
                f"the {part} part has {len(index)} events with {frauds} frauds, and needs both kinds: "
                "give a longer history, a later --until, or a shorter --label-delay"
            )
    return Split(train, validation, start_ms)
