"""Small nets for the tests of scoring. No postponed annotations here: torch.jit.script cannot read them."""

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """Every output is one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> dict[str, Tensor]:
        values = torch.full([steps.size(0)], self.value)
        return {"probability": values, "log_odds": values, "sequence": values, "aggregate": values}


class Brittle(nn.Module):
    """NaN where the first aggregate is 1, an exception where it is 2, infinity where it is 3, else 0.5."""

    def forward(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> dict[str, Tensor]:
        first = aggregates[:, 0]
        if bool((first == 2.0).any()):
            raise ValueError("brittle")
        values = torch.full_like(first, 0.5)
        values = torch.where(first == 1.0, torch.full_like(first, float("nan")), values)
        values = torch.where(first == 3.0, torch.full_like(first, float("inf")), values)
        return {"probability": values, "log_odds": values, "sequence": values, "aggregate": values}


class Spoilt(nn.Module):
    """Another net, but NaN where the aggregate of a column has one value."""

    def __init__(self, net: nn.Module, column: int, value: float) -> None:
        super().__init__()
        self.net, self.column, self.value = net, column, value

    def forward(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> dict[str, Tensor]:
        spoilt: dict[str, Tensor] = {}
        at = aggregates[:, self.column] == self.value
        for name, values in self.net(steps, lengths, aggregates).items():
            spoilt[name] = torch.where(at, torch.full_like(values, float("nan")), values)
        return spoilt
