"""Which features matter: how much average precision is lost when a group of columns is shuffled among events.

Breiman, "Random Forests", Machine Learning 45, 2001; the groups are the domain's, shuffled together because
columns of one group say nearly the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from models.fitting import Index, Progress, ProgressListener, Tensors
from stream.features.spec import Column

_FRAUDS, _GENUINE = 1_000, 4_000
_BATCH = 2_048


@dataclass(frozen=True, slots=True)
class Importance:
    """Loss of average precision, most important first. It may be a little below 0 by chance."""

    groups: dict[str, float]
    columns: dict[str, float]
    """Of the aggregate columns, each shuffled alone."""
    average_precision: float
    """Of the events looked at, undisturbed."""
    events: int


NOT_MEASURED = Importance({}, {}, float("nan"), 0)
"""Of a model that is not going to be explained."""


def permutation_importance(
    net: nn.Module,
    tensors: Tensors,
    index: Index,
    fraud: NDArray[np.bool_],
    *,
    step_groups: Sequence[str],
    aggregate_columns: Sequence[Column],
    seed: int,
    listener: ProgressListener,
) -> Importance:
    """Of a net that gives (B, heads) log-odds, over a sample of the events `index` (V,) whose fraud is `fraud` (V,)."""
    random = np.random.default_rng((seed, 7))
    frauds, genuine = np.flatnonzero(fraud), np.flatnonzero(~fraud)
    chosen = np.concatenate(
        [
            random.choice(part, min(most, len(part)), replace=False)
            for part, most in ((frauds, _FRAUDS), (genuine, _GENUINE))
        ]
    )
    # The genuine ones stand for all of them.
    weight = np.where(fraud[chosen], 1.0, len(genuine) / max(1, min(_GENUINE, len(genuine))))
    sample = _Sample(net, tensors.batch(index[chosen]), fraud[chosen], weight)
    aggregate_groups = [column.group for column in aggregate_columns]
    groups = sorted({*step_groups, *aggregate_groups})
    total, whole = len(groups) + len(aggregate_columns), sample.score(np.arange(len(chosen)), [], [])
    lost_by_group, lost_by_column = {}, {}
    for done, group in enumerate(groups):
        order = random.permutation(len(chosen))
        steps = [place for place, name in enumerate(step_groups) if name == group]
        aggregates = [place for place, name in enumerate(aggregate_groups) if name == group]
        lost_by_group[group] = whole - sample.score(order, steps, aggregates)
        listener(Progress("importance", done, total))
    for place, column in enumerate(aggregate_columns):
        lost_by_column[column.name] = whole - sample.score(random.permutation(len(chosen)), [], [place])
        listener(Progress("importance", len(groups) + place + 1, total))
    return Importance(_ranked(lost_by_group), _ranked(lost_by_column), whole, len(chosen))


@dataclass(frozen=True, slots=True)
class _Sample:
    net: nn.Module
    batch: tuple[Tensor, Tensor, Tensor]
    fraud: NDArray[np.bool_]
    weight: NDArray[np.float64]

    def score(self, order: Index, steps: list[int], aggregates: list[int]) -> float:
        """Average precision with these columns taken from the events in another order."""
        own_steps, lengths, own_aggregates = (part.clone() for part in self.batch)
        other = torch.from_numpy(order).to(lengths.device)
        if steps:
            # A sequence moves whole, with its padding: its last step goes where the other's last step is.
            own_steps[:, :, steps] = _aligned(self.batch[0][other][:, :, steps], lengths[other], lengths)
        if aggregates:
            own_aggregates[:, aggregates] = self.batch[2][other][:, aggregates]
        with torch.inference_mode():
            parts = [
                self.net(own_steps[s : s + _BATCH], lengths[s : s + _BATCH], own_aggregates[s : s + _BATCH])[:, 0]
                for s in range(0, len(lengths), _BATCH)
            ]
        log_odds = torch.cat(parts).float().cpu().numpy()
        return float(average_precision_score(self.fraud, log_odds, sample_weight=self.weight))


def _aligned(steps: Tensor, theirs: Tensor, ours: Tensor) -> Tensor:
    """(B, T, C) shifted along time so that the step at `theirs` - 1 comes to `ours` - 1; the ends wrap."""
    length = steps.size(1)
    place = (torch.arange(length, device=steps.device).unsqueeze(0) + (theirs - ours).unsqueeze(1)) % length
    return steps.gather(1, place.unsqueeze(2).expand(-1, -1, steps.size(2)))


def _ranked(lost: dict[str, float]) -> dict[str, float]:
    return dict(sorted(lost.items(), key=lambda item: (-item[1], item[0])))
