"""Smaller nets out of trained ones: whole hidden units are taken out, then the rest is trained on for a while.

Units rather than single weights, because only fewer rows make the products faster. And not int8 "dynamic"
quantisation, because that scales by the largest value of the batch: an event's score would depend on what else
is in its batch, which the engine promises it does not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.fitting import FitOptions, Tensors
from models.nets.risknet import NetOptions, RiskNet
from models.nets.sequences import Recurrent

_ROUND = 8
"""Sizes stay multiples of the width of a vector register."""

_ONLY = torch.zeros(1, dtype=torch.int64)
"""The row of a layer with one output."""

_TIMED_CALLS = 30
_TIMED_EVENTS = 256


@dataclass(frozen=True, slots=True)
class Pruning:
    """What taking units out cost and brought; average precision is of the watched validation events."""

    share: float
    hidden: tuple[int, int]
    """Before and after, as are the others."""
    width: tuple[int, int]
    average_precision: tuple[float, float]
    us_per_event: tuple[float, float]


def smaller(net: RiskNet, options: NetOptions, share: float, sequence_length: int) -> RiskNet:
    """A net without the given share of its hidden units: the weakest go. TypeError for cnn and attention.

    The importance of a unit: norm of what comes in times norm of what goes out.
    """
    hidden, width = _kept(options.hidden, share), _kept(options.width, share)
    made = RiskNet(*net.statistics, replace(options, hidden=hidden, width=width), sequence_length)
    made.to(next(net.parameters()).device)
    # Submodules are known to the type checker as Tensor or Module only.
    old: Any = net
    new: Any = made
    with torch.no_grad():
        sequence, aggregate = _copy_sequence(old, new, hidden), _copy_aggregates(old, new, hidden, width)
        if net.joins:
            reading = torch.cat([sequence, options.hidden + aggregate])
            inner = _strongest(old.joined[1].weight[:, reading], old.joined[3].weight, hidden)
            _copy_linear(old.joined[1], new.joined[1], inner, reading)
            _copy_linear(old.joined[3], new.joined[3], _ONLY, inner)
    return made


def fine_tuning(options: FitOptions) -> FitOptions:
    """How a net is trained on after its units were taken out."""
    return replace(options, epochs=max(1, options.epochs // 3), learning_rate=options.learning_rate / 2)


def us_per_event(net: nn.Module, tensors: Tensors) -> float:
    """Microseconds of one scored event in a batch of 256: the best of several calls, as others may be running."""
    index = torch.arange(min(_TIMED_EVENTS, len(tensors.fraud))).numpy()
    batch = tensors.batch(index)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(_TIMED_CALLS):
            before = time.perf_counter()
            net(*batch)
            best = min(best, time.perf_counter() - before)
    return best / len(index) * 1e6


def _kept(size: int, share: float) -> int:
    return max(_ROUND, round(size * (1.0 - share) / _ROUND) * _ROUND)


def _copy_sequence(net: Any, made: Any, hidden: int) -> Tensor:
    """The units kept."""
    if not net.reads_sequence:
        return torch.zeros(0, dtype=torch.int64)
    if not isinstance(net.sequence, Recurrent):
        raise TypeError("no units of a convolution or of attention can be taken out; TrainOptions refuses that")
    made.step_encoder.load_state_dict(net.step_encoder.state_dict())
    old, new = net.sequence.cell, made.sequence.cell
    size = old.hidden_size
    gates = old.weight_hh_l0.size(0) // size
    outgoing = [net.sequence_head.weight, *([net.joined[1].weight[:, :size]] if net.joins else [])]
    incoming = torch.cat([old.weight_ih_l0, old.weight_hh_l0], dim=1).view(gates, size, -1).transpose(0, 1)
    units = _strongest(incoming.flatten(1), torch.cat(outgoing), hidden)
    rows = (torch.arange(gates).unsqueeze(1) * size + units).flatten()
    new.weight_ih_l0.copy_(old.weight_ih_l0[rows])
    new.weight_hh_l0.copy_(old.weight_hh_l0[rows][:, units])
    new.bias_ih_l0.copy_(old.bias_ih_l0[rows])
    new.bias_hh_l0.copy_(old.bias_hh_l0[rows])
    _copy_linear(net.sequence_head, made.sequence_head, _ONLY, units)
    return units


def _copy_aggregates(net: Any, made: Any, hidden: int, width: int) -> Tensor:
    """The units kept of the branch's output."""
    if not net.reads_aggregates:
        return torch.zeros(0, dtype=torch.int64)
    old, new = net.aggregate, made.aggregate
    new.columns.load_state_dict(old.columns.state_dict())
    new.current.load_state_dict(old.current.state_dict())
    size = old.layers[3].out_features
    outgoing = [net.aggregate_head.weight, *([net.joined[1].weight[:, -size:]] if net.joins else [])]
    units = _strongest(old.layers[3].weight, torch.cat(outgoing), hidden)
    inner = _strongest(old.layers[0].weight, old.layers[3].weight[units], width)
    _copy_linear(old.layers[0], new.layers[0], inner, None)
    _copy_linear(old.layers[3], new.layers[3], units, inner)
    _copy_linear(net.aggregate_head, made.aggregate_head, _ONLY, units)
    return units


def _strongest(incoming: Tensor, outgoing: Tensor, count: int) -> Tensor:
    """Ascending positions of the `count` units with the largest norm of weights in (U, I) times out (O, U)."""
    strength = incoming.norm(dim=1) * outgoing.norm(dim=0)
    found: Tensor = strength.topk(count).indices.sort().values.cpu()
    return found


def _copy_linear(old: nn.Linear, new: nn.Linear, rows: Tensor, columns: Tensor | None) -> None:
    weight = old.weight[rows]
    new.weight.copy_(weight if columns is None else weight[:, columns])
    new.bias.copy_(old.bias[rows])
