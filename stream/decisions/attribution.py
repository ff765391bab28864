"""How much each group of features added to a score: attribution by replacing groups with usual values.

For a group g the contribution is the mean of two differences in log-odds: the event's score minus the score
with g made usual (leave one out), and the score of a usual event with g taken from this one minus that of a
usual event (add one in). These are the two ends of the Shapley value's average; their mean equals it exactly
as long as groups interact in pairs, and costs 2G + 2 model rows where the Shapley value needs 2^G.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.errors import ConfigError
from stream.features.spec import Column

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ScoreFunction = Callable[[F32, I64, F32], NDArray[np.floating[Any]]]
"""(steps (N, T, F), lengths (N,), aggregates (N, D)) -> log-odds (N,)."""

MOST_ROWS = 4096
"""Model rows per call: bounds the memory that a burst of alerts takes."""


@dataclass(frozen=True)
class FeatureGroups:
    """The G groups of a model's columns, in order of first appearance."""

    names: tuple[str, ...]
    of_step: I64
    """(F,): the group of each step column."""
    of_aggregate: I64
    """(D,): the group of each aggregate column."""

    @classmethod
    def of(cls, step_columns: Sequence[Column], aggregate_columns: Sequence[Column]) -> FeatureGroups:
        """The groups that the columns name; the columns must be the model's, in its order."""
        names = tuple(dict.fromkeys(column.group for column in (*step_columns, *aggregate_columns)))
        place = {name: index for index, name in enumerate(names)}
        return cls(
            names,
            np.array([place[column.group] for column in step_columns], dtype=np.int64),
            np.array([place[column.group] for column in aggregate_columns], dtype=np.int64),
        )


@dataclass(frozen=True)
class Reference:
    """A usual event, in the model's columns; NaN where the value is usually missing."""

    step: F32
    """(F,)"""
    aggregates: F32
    """(D,)"""

    @classmethod
    def of(
        cls,
        step_columns: Sequence[Column],
        aggregate_columns: Sequence[Column],
        step_values: Mapping[str, float | None],
        aggregate_values: Mapping[str, float | None],
    ) -> Reference:
        """From values by column name, None for missing. ConfigError for a column without one."""
        return cls(_values(step_columns, step_values), _values(aggregate_columns, aggregate_values))


def _values(columns: Sequence[Column], values: Mapping[str, float | None]) -> F32:
    absent = [column.name for column in columns if column.name not in values]
    if absent:
        raise ConfigError(f"reference values: none for the column {absent[0]!r}")
    found = [values[column.name] for column in columns]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float32)


class ModelInputs(NamedTuple):
    """What the model was given for A events, in its own columns."""

    steps: F32
    """(A, T, F)"""
    lengths: I64
    """(A,)"""
    aggregates: F32
    """(A, D)"""


@dataclass(frozen=True)
class Attribution:
    """Attributes the scores of one model."""

    groups: FeatureGroups
    reference: Reference

    def contributions(self, score: ScoreFunction, inputs: ModelInputs) -> F64:
        """(A, G): what each of the G groups added to the scores of A events, in log-odds.

        Calls `score` once per MOST_ROWS // (2G + 2) events. A score that is not finite gives NaN.
        """
        count = len(self.groups.names)
        kept = _variants(count)
        per_call = max(1, MOST_ROWS // len(kept))
        parts = [np.empty((0, count))]
        for start in range(0, len(inputs.steps), per_call):
            part = slice(start, start + per_call)
            some = ModelInputs(inputs.steps[part], inputs.lengths[part], inputs.aggregates[part])
            scores = self.scores_keeping(kept, score, some)
            whole, usual = scores[:, :1], scores[:, 1:2]
            without, alone = scores[:, 2 : count + 2], scores[:, count + 2 :]
            with np.errstate(invalid="ignore"):
                parts.append(((whole - without) + (alone - usual)) / 2)
        return np.concatenate(parts)

    def scores_keeping(self, kept: NDArray[np.bool_], score: ScoreFunction, inputs: ModelInputs) -> F64:
        """Scores (A, V): variant v keeps the groups `kept[v]` (V, G) and makes the rest usual. One call.

        A step group is replaced in every step that the sequence has; what lies past its length stays as it is.
        """
        steps, lengths, aggregates = inputs
        events, length, width = steps.shape
        within = (np.arange(length) < lengths[:, None])[:, None, :, None]
        replaced = within & ~kept[:, self.groups.of_step][None, :, None, :]
        varied_steps = np.where(replaced, self.reference.step, steps[:, None])
        kept_aggregates = kept[:, self.groups.of_aggregate]
        varied_aggregates = np.where(kept_aggregates, aggregates[:, None], self.reference.aggregates)
        rows = events * len(kept)
        found = score(
            varied_steps.astype(np.float32, copy=False).reshape(rows, length, width),
            np.repeat(lengths, len(kept)),
            varied_aggregates.astype(np.float32, copy=False).reshape(rows, -1),
        )
        return np.asarray(found, dtype=np.float64).reshape(events, len(kept))


def _variants(count: int) -> NDArray[np.bool_]:
    """(2G + 2, G): which groups each variant keeps: all, none, all but one, only one."""
    one = np.eye(count, dtype=np.bool_)
    return np.concatenate([np.ones((1, count), np.bool_), np.zeros((1, count), np.bool_), ~one, one])
