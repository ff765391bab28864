"""The training loop of one net: sampling, optimisation, early stopping. Knows tensors, not features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from models.dataset import FRAUD
from models.nets import RiskNet

Index = NDArray[np.int64]

_PREDICT_BATCH = 2048
_WATCHED_GENUINE = 30_000
"""Genuine validation events that early stopping looks at, drawn once; all frauds are looked at."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a net is trained. The defaults suit fraud rates of 0.1 to 5 percent."""

    epochs: int = 8
    patience: int = 3
    """Epochs without a better validation average precision before stopping."""
    batch_size: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    genuine_per_fraud: int = 30
    """Genuine events drawn anew for each epoch, per fraud; the calibration undoes the change of prior."""
    epoch_events: int = 10_000
    """An epoch draws at least so many genuine events, if there are."""
    branch_weight: float = 0.3
    """Weight of each branch's own loss: it keeps both branches useful by themselves."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: `done` of `total`, with the figures of the last epoch if there was one."""

    stage: str
    done: int
    total: int
    figures: dict[str, float] = field(default_factory=dict)


class ProgressListener(Protocol):
    """Told often (every few batches) and from the training thread: must return at once."""

    def __call__(self, progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True)
class Tensors:
    """A training set on the device. `steps` has one more row of zeros at the end: what the index -1 fetches."""

    steps: Tensor
    predecessors: Tensor
    aggregates: Tensor
    fraud: Tensor

    def batch(self, index: Index) -> tuple[Tensor, Tensor, Tensor]:
        """steps (B,T,F) float32, lengths (B,) int64, aggregates (B,D) float32 of these events."""
        where = torch.from_numpy(index).to(self.steps.device)
        chosen = self.predecessors[where]
        return self.steps[chosen.long()].float(), (chosen >= 0).sum(dim=1), self.aggregates[where]

    def targets(self, index: Index) -> Tensor:
        """(B, 1) float32, 1 for fraud."""
        return self.fraud[torch.from_numpy(index).to(self.fraud.device)].unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a fit went. The net itself was left with its best weights."""

    best_epoch: int
    epochs: int
    average_precision: float
    genuine_share: float
    """Of the genuine training events, the share that an epoch drew: log of it is the shift of the prior."""


def predict(net: RiskNet, tensors: Tensors, index: Index) -> NDArray[np.float32]:
    """(N, 3) raw log-odds of these events, by the net in its evaluation mode."""
    was_training = net.training
    net.eval()
    with torch.inference_mode():
        parts = [net.raw(*tensors.batch(part)).cpu().numpy() for part in _batches(index, _PREDICT_BATCH)]
    net.train(was_training)
    return np.concatenate(parts)


def fit(
    net: RiskNet,
    tensors: Tensors,
    train: Index,
    validation: Index,
    *,
    options: FitOptions,
    random: np.random.Generator,
    listener: ProgressListener,
) -> Fitted:
    """Trains `net` in place and leaves it with the weights of its best epoch. Repeats exactly on one CPU thread."""
    fraud = _is_fraud(tensors, train)
    frauds, genuine = train[fraud], train[~fraud]
    drawn = min(len(genuine), max(options.epoch_events, options.genuine_per_fraud * len(frauds)))
    per_epoch = math.ceil((len(frauds) + drawn) / options.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.learning_rate, total_steps=per_epoch * options.epochs, pct_start=0.15
    )
    watched, weight = _watched(tensors, validation, random)
    best, best_epoch, weights = -1.0, 0, copy.deepcopy(net.state_dict())
    figures: dict[str, float] = {}
    epoch = 0
    for epoch in range(1, options.epochs + 1):
        index = random.permutation(np.concatenate([frauds, random.choice(genuine, drawn, replace=False)]))
        losses = []
        for done, part in enumerate(_batches(index, options.batch_size)):
            losses.append(_step(net, tensors, part, optimizer, options.branch_weight))
            schedule.step()
            if done % 8 == 0:
                listener(Progress("train", (epoch - 1) * per_epoch + done, options.epochs * per_epoch, figures))
        score = _watch(net, tensors, watched, weight)
        figures = {"epoch": epoch, "loss": float(torch.stack(losses).mean()), "validation_average_precision": score}
        listener(Progress("train", epoch * per_epoch, options.epochs * per_epoch, figures))
        if score > best:
            best, best_epoch, weights = score, epoch, copy.deepcopy(net.state_dict())
        elif epoch - best_epoch >= options.patience:
            break
    net.load_state_dict(weights)
    net.eval()
    return Fitted(best_epoch, epoch, best, drawn / len(genuine))


def _step(
    net: RiskNet, tensors: Tensors, index: Index, optimizer: torch.optim.Optimizer, branch_weight: float
) -> Tensor:
    net.train()
    log_odds = net.raw(*tensors.batch(index))
    losses = nn.functional.binary_cross_entropy_with_logits(
        log_odds, tensors.targets(index).expand_as(log_odds), reduction="none"
    ).mean(dim=0)
    loss = losses[0] + branch_weight * losses[1:].sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def _watched(tensors: Tensors, validation: Index, random: np.random.Generator) -> tuple[Index, NDArray[np.float64]]:
    """The events that early stopping looks at, and weights that give the genuine ones their true share."""
    fraud = _is_fraud(tensors, validation)
    genuine = validation[~fraud]
    drawn = random.choice(genuine, min(len(genuine), _WATCHED_GENUINE), replace=False)
    index = np.concatenate([validation[fraud], drawn])
    return index, np.r_[np.ones(int(fraud.sum())), np.full(len(drawn), len(genuine) / len(drawn))]


def _watch(net: RiskNet, tensors: Tensors, index: Index, weight: NDArray[np.float64]) -> float:
    log_odds = predict(net, tensors, index)[:, 0]
    return float(average_precision_score(_is_fraud(tensors, index), log_odds, sample_weight=weight))


def _is_fraud(tensors: Tensors, index: Index) -> NDArray[np.bool_]:
    return (tensors.targets(index).squeeze(1) == FRAUD).cpu().numpy()


def _batches(index: Index, size: int) -> Iterator[Index]:
    for start in range(0, len(index), size):
        yield index[start : start + size]
