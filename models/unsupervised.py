"""What can be learnt without labels: an autoencoder, and a net's first acquaintance with the data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.fitting import Index, Progress, ProgressListener, Tensors, batches
from models.nets.autoencoder import Autoencoder
from models.nets.encoding import ColumnStatistics
from models.nets.risknet import RiskNet
from models.nets.sequences import last_valid

_EVENTS = 100_000
"""An epoch draws at most so many."""
_BATCH = 512
_AUTOENCODER_EPOCHS = 5
_MASKED = 0.3
"""Share of the columns that pretraining hides."""


def fit_autoencoder(
    steps: ColumnStatistics, aggregates: ColumnStatistics, tensors: Tensors, index: Index, seed: tuple[int, ...]
) -> Autoencoder:
    """Trains on these events, whatever their labels. Blocks for seconds."""
    random = np.random.default_rng(seed)
    torch.manual_seed(int(random.integers(2**62)))
    net = Autoencoder(steps, aggregates).to(tensors.steps.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(_AUTOENCODER_EPOCHS):
        for part in batches(_drawn(index, random), _BATCH):
            # Its answer is the log of the error: training it rather than the error keeps the outliers from ruling.
            _descend(net(*tensors.batch(part)).mean(), optimizer)
    return net.eval()


def pretrain(
    net: RiskNet, tensors: Tensors, index: Index, epochs: int, seed: tuple[int, ...], listener: ProgressListener
) -> None:
    """Trains the branches of `net`, not its heads, to rebuild columns that are hidden from it. Blocks.

    Hidden columns read as missing. What is rebuilt are the normalised numbers of the aggregates and of the
    current step, from all that the branches made of the rest.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(int(random.integers(2**62)))
    encoders = Autoencoder(*net.statistics).to(tensors.steps.device)
    rebuild = nn.Linear(net.representation, len(net.statistics[0].log) + len(net.statistics[1].log)).to(
        tensors.steps.device
    )
    optimizer = torch.optim.AdamW([*net.parameters(), *rebuild.parameters()], lr=2e-3)
    net.train()
    for epoch in range(epochs):
        for part in batches(_drawn(index, random), _BATCH):
            steps, lengths, aggregates = tensors.batch(part)
            target = torch.cat(
                [
                    encoders.columns.normalised(aggregates),
                    encoders.current.normalised(last_valid(steps, lengths)),
                ],
                dim=1,
            )
            found = net.branches(_hidden(steps), lengths, _hidden(aggregates))
            _descend(nn.functional.smooth_l1_loss(rebuild(torch.cat(found, dim=1)), target), optimizer)
        listener(Progress("pretrain", epoch + 1, epochs))


def _hidden(values: Tensor) -> Tensor:
    return values.masked_fill(torch.rand_like(values) < _MASKED, float("nan"))


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _drawn(index: Index, random: np.random.Generator) -> Index:
    return random.choice(index, min(len(index), _EVENTS), replace=False)
