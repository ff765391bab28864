"""The training loop of one net: sampling, optimisation, early stopping. Knows tensors, not features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from models.checkpoint import NO_CHECKPOINT, Checkpoint, Weights
from models.dataset import FRAUD

Index = NDArray[np.int64]

_PREDICT_BATCH = 2048
_WATCHED_GENUINE = 30_000
"""Genuine validation events that early stopping looks at, drawn once; all frauds are looked at."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a net is trained. The defaults suit fraud rates of 0.1 to 5 percent."""

    epochs: int = 20
    patience: int = 12
    """Epochs without a better validation average precision before stopping. Short of the schedule's end a net is
    unfinished: while the learning rate is high, a good early epoch is luck."""
    batch_size: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 1.0
    """Of every matrix, times the learning rate at each step; biases are free. Strong, for there are a thousand
    inputs and often few frauds: what does not pay all the time is forgotten."""
    genuine_per_fraud: int = 30
    """Genuine events drawn anew for each epoch, per fraud; the calibration undoes the change of prior."""
    epoch_events: tuple[int, int] = (10_000, 100_000)
    """An epoch draws at least, and at most, so many genuine events, if there are."""
    epoch_steps: int = 40
    """An epoch of fewer batches is repeated, with other draws, until it has so many: small histories need the steps."""
    branch_weight: float = 0.3
    """Weight of each branch's own loss: it keeps both branches useful by themselves."""
    loss: Literal["bce", "focal"] = "bce"
    """focal: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, with gamma 2."""
    average_decay: float = 0.995
    """What is kept is a moving average of the weights over the steps, with this decay; 0: the weights as they are."""


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

    def is_fraud(self, index: Index) -> NDArray[np.bool_]:
        """(B,)"""
        return (self.targets(index).squeeze(1) == FRAUD).cpu().numpy()


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a fit went. The net itself was left with its best weights."""

    best_epoch: int
    epochs: int
    average_precision: float
    """Of the best epoch on the validation events; NaN without any."""
    genuine_share: float
    """Of the genuine training events, the share that an epoch drew: log of it is the shift of the prior."""

    def suiting(self, options: FitOptions) -> FitOptions:
        """For another fit, without validation: a schedule that ends at the best epoch if this one was stopped early."""
        stopped_early = self.epochs < options.epochs
        return replace(options, epochs=self.best_epoch) if stopped_early else options


def predict(net: nn.Module, tensors: Tensors, index: Index) -> NDArray[np.float32]:
    """(N, heads) raw log-odds of these events, by the net in its evaluation mode."""
    was_training = net.training
    net.eval()
    with torch.inference_mode():
        parts = [net(*tensors.batch(part)).float().cpu().numpy() for part in batches(index, _PREDICT_BATCH)]
    net.train(was_training)
    return np.concatenate(parts)


class Fit:
    """One fit of one net. `run` trains it in place and leaves it with its best weights."""

    def __init__(
        self,
        net: nn.Module,
        tensors: Tensors,
        train: Index,
        validation: Index | None,
        *,
        options: FitOptions,
        seed: tuple[int, ...],
        listener: ProgressListener,
        stage: str = "train",
        checkpoint: Checkpoint = NO_CHECKPOINT,
    ) -> None:
        """Without `validation` the weights at the end of the schedule are kept. Repeats exactly on one CPU thread."""
        self._net, self._tensors, self._options, self._listener = net, tensors, options, listener
        self._stage, self._seed, self._checkpoint = stage, seed, checkpoint
        fraud = tensors.is_fraud(train)
        self._frauds, self._genuine = train[fraud], train[~fraud]
        wanted = int(np.clip(options.genuine_per_fraud * len(self._frauds), *options.epoch_events))
        self._drawn = min(len(self._genuine), wanted)
        per_draw = math.ceil((len(self._frauds) + self._drawn) / options.batch_size)
        self._draws = max(1, math.ceil(options.epoch_steps / per_draw))
        self._per_epoch = self._draws * per_draw
        self._optimizer = torch.optim.AdamW(decay_groups(net, options.weight_decay), lr=options.learning_rate)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, options.learning_rate, total_steps=self._per_epoch * options.epochs, pct_start=0.15
        )
        self._precision = _MixedPrecision(tensors.steps.device)
        self._average = copy.deepcopy(net)
        self._watched = None if validation is None else _Watched.of(tensors, validation, (*seed, 0))

    def run(self) -> Fitted:
        """Trains. Blocks for seconds to minutes; goes on where its checkpoint stopped."""
        best, best_epoch, weights, first, figures = self._resumed()
        epoch = first - 1
        for epoch in range(first, self._options.epochs + 1):
            loss = self._epoch(epoch, figures)
            score = float("nan") if self._watched is None else self._watched.score(self._average, self._tensors)
            figures = {"epoch": epoch, "loss": loss}
            figures |= {} if self._watched is None else {"validation_average_precision": score}
            self._tell(epoch, 0, figures)
            if self._watched is None or score > best:
                best, best_epoch, weights = score, epoch, copy.deepcopy(self._average.state_dict())
            stale = epoch - best_epoch >= self._options.patience
            self._save(epoch, best, best_epoch, weights, figures, over=stale)
            if stale:
                break
        self._net.load_state_dict(weights)
        self._net.eval()
        return Fitted(best_epoch, epoch, best, self._drawn / len(self._genuine))

    def _epoch(self, epoch: int, figures: dict[str, float]) -> float:
        """One pass; the mean loss. Seeded by its number, so that a resumed fit draws what it would have drawn."""
        random = np.random.default_rng((*self._seed, epoch))
        torch.manual_seed(int(random.integers(2**62)))
        losses: list[Tensor] = []
        self._net.train()
        for _ in range(self._draws):
            drawn = random.choice(self._genuine, self._drawn, replace=False)
            index = random.permutation(np.concatenate([self._frauds, drawn]))
            for part in batches(index, self._options.batch_size):
                losses.append(self._step(part, (epoch - 1) * self._per_epoch + len(losses)))
                if len(losses) % 8 == 0:
                    self._tell(epoch - 1, len(losses), figures)
        return float(torch.stack(losses).mean())

    def _step(self, index: Index, number: int) -> Tensor:
        with self._precision.cast():
            log_odds = self._net(*self._tensors.batch(index)).float()
            losses = self._losses(log_odds, self._tensors.targets(index).expand_as(log_odds)).mean(dim=0)
            loss: Tensor = losses[0] + self._options.branch_weight * losses[1:].sum()
        self._optimizer.zero_grad(set_to_none=True)
        self._precision.step(loss, self._optimizer, self._net)
        self._schedule.step()
        # A young average follows quickly: after n steps it is that of about the last tenth of them.
        decay = min(self._options.average_decay, (1 + number) / (10 + number)) if self._options.average_decay else 0.0
        with torch.no_grad():
            for mean, value in zip(self._average.parameters(), self._net.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
        return loss.detach()

    def _losses(self, log_odds: Tensor, target: Tensor) -> Tensor:
        losses = nn.functional.binary_cross_entropy_with_logits(log_odds, target, reduction="none")
        if self._options.loss == "focal":
            losses = losses * (target - torch.sigmoid(log_odds)).square()
        return losses

    def _tell(self, epochs: int, batch: int, figures: dict[str, float]) -> None:
        done, total = epochs * self._per_epoch + batch, self._options.epochs * self._per_epoch
        self._listener(Progress(self._stage, done, total, figures))

    def _resumed(self) -> tuple[float, int, Weights, int, dict[str, float]]:
        """Best score, its epoch and weights, the epoch to begin with, and the last one's figures."""
        found = self._checkpoint.load()
        if found is None:
            return -1.0, 0, copy.deepcopy(self._net.state_dict()), 1, {}
        self._net.load_state_dict(found.weights("net"))
        self._average.load_state_dict(found.weights("average"))
        found.restore_optimizer(self._optimizer)
        facts = found.facts
        self._schedule.last_epoch = facts["steps"]
        for group, (rate, momenta) in zip(self._optimizer.param_groups, facts["rates"], strict=True):
            group["lr"], group["betas"] = rate, tuple(momenta)
        next_epoch = self._options.epochs + 1 if facts["over"] else facts["epoch"] + 1
        return facts["best"], facts["best_epoch"], found.weights("best"), next_epoch, facts["figures"]

    def _save(
        self, epoch: int, best: float, best_epoch: int, weights: Weights, figures: dict[str, float], *, over: bool
    ) -> None:
        facts = {
            "epoch": epoch,
            "best": best,
            "best_epoch": best_epoch,
            "figures": figures,
            "over": over,
            "steps": self._schedule.last_epoch,
            "rates": [(group["lr"], group["betas"]) for group in self._optimizer.param_groups],
        }
        states = {"net": self._net.state_dict(), "average": self._average.state_dict(), "best": weights}
        self._checkpoint.save(states, self._optimizer, facts)


def decay_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters for the optimiser: matrices decay, biases do not."""
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]


class _MixedPrecision:
    """bfloat16 on a GPU that has it, else float16 with scaled gradients; on the CPU float32, which is faster there."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._type = torch.bfloat16 if self._cuda and torch.cuda.is_bf16_supported() else torch.float16
        self._scaler = torch.amp.GradScaler("cuda", enabled=self._cuda and self._type is torch.float16)

    def cast(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", self._type) if self._cuda else nullcontext()

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        self._scaler.step(optimizer)
        self._scaler.update()


@dataclass(frozen=True, slots=True)
class _Watched:
    """The events that early stopping looks at, and weights that give the genuine ones their true share."""

    index: Index
    fraud: NDArray[np.bool_]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, tensors: Tensors, validation: Index, seed: tuple[int, ...]) -> _Watched:
        fraud = tensors.is_fraud(validation)
        genuine = validation[~fraud]
        random = np.random.default_rng(seed)
        drawn = random.choice(genuine, min(len(genuine), _WATCHED_GENUINE), replace=False)
        frauds = int(fraud.sum())
        index = np.concatenate([validation[fraud], drawn])
        weight = np.r_[np.ones(frauds), np.full(len(drawn), len(genuine) / len(drawn))]
        return cls(index, np.arange(len(index)) < frauds, weight)

    def score(self, net: nn.Module, tensors: Tensors) -> float:
        log_odds = predict(net, tensors, self.index)[:, 0]
        return float(average_precision_score(self.fraud, log_odds, sample_weight=self.weight))


def batches(index: Index, size: int) -> Iterator[Index]:
    """The index in pieces of at most `size`."""
    for start in range(0, len(index), size):
        yield index[start : start + size]
