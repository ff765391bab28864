"""An autoencoder over the event: how badly it is rebuilt says how unusual it is. Learns without labels."""

import torch
from torch import Tensor, nn

from models.nets.encoding import ColumnEncoder, ColumnStatistics
from models.nets.sequences import last_valid


class Autoencoder(nn.Module):
    """steps (B,T,F), lengths (B,), aggregates (B,D), raw, to ln of the mean squared error of rebuilding, (B, 1).

    What is rebuilt are the normalised numbers of the aggregates and of the current step; a missing one counts
    as usual.
    """

    def __init__(self, steps: ColumnStatistics, aggregates: ColumnStatistics, hidden: int = 64, code: int = 12) -> None:
        super().__init__()
        self.columns = ColumnEncoder(aggregates, 1)
        self.current = ColumnEncoder(steps, 1)
        size = len(aggregates.log) + len(steps.log)
        self.layers = nn.Sequential(
            nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, code), nn.ReLU(),
            nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, size),
        )  # fmt: skip

    def forward(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> Tensor:
        current = self.current.normalised(last_valid(steps, lengths))
        event = torch.cat([self.columns.normalised(aggregates), current], dim=1)
        error = (self.layers(event) - event).square().mean(dim=1, keepdim=True)
        return torch.log(error + 1e-6)
