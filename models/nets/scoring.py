"""What is exported: one or several nets, averaged, with the calibration, behind the bundle's interface."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

ANOMALY: Final = "anomaly"
"""The head of the autoencoder."""


def output_kinds(heads: Sequence[str]) -> dict[str, str]:
    """Name and kind of what ScoringNet.forward gives, as the manifest has them."""
    return {"log_odds": "log_odds"} | dict.fromkeys(heads, "probability")


class ScoringNet(nn.Module):
    """steps (B,T,F), lengths (B,), aggregates (B,D), raw, to named outputs, (B,) each.

    The outputs: `log_odds` and `probability` of the answer, and the probability of each further head. Log-odds
    of several members are averaged before the calibration.
    """

    heads: list[str]
    has_anomaly: Final[bool]
    """The only constant here: torch writes several in the order of a set, and so not always the same archive."""
    slope: Tensor
    intercept: Tensor

    def __init__(self, nets: Sequence[nn.Module], heads: Sequence[str], anomaly: nn.Module | None = None) -> None:
        """`heads` name the columns of each net's answer; with `anomaly` one more of that name follows."""
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.has_anomaly = anomaly is not None
        if anomaly is not None:
            self.anomaly = anomaly
        self.heads = [*heads, ANOMALY] if self.has_anomaly else list(heads)
        self.register_buffer("slope", torch.ones(len(self.heads)))
        self.register_buffer("intercept", torch.zeros(len(self.heads)))

    def raw(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> Tensor:
        """(B, heads): log-odds before calibration."""
        answers: list[Tensor] = []
        for net in self.nets:
            answers.append(net(steps, lengths, aggregates))  # noqa: PERF401  # TorchScript unrolls no comprehension
        raw = answers[0] if len(self.nets) == 1 else torch.stack(answers).mean(dim=0)
        if self.has_anomaly:
            raw = torch.cat([raw, self.anomaly(steps, lengths, aggregates)], dim=1)
        return raw

    def forward(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> dict[str, Tensor]:
        log_odds = self.raw(steps, lengths, aggregates) * self.slope + self.intercept
        probabilities = torch.sigmoid(log_odds)
        named = {"log_odds": log_odds[:, 0]}
        for position, head in enumerate(self.heads):
            named[head] = probabilities[:, position]
        return named

    def calibrate(self, coefficients: Mapping[str, tuple[float, float]]) -> None:
        """Sets (slope, intercept) of each head by name."""
        self.slope.copy_(torch.tensor([coefficients[head][0] for head in self.heads]))
        self.intercept.copy_(torch.tensor([coefficients[head][1] for head in self.heads]))
