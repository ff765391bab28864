"""Branches that read the sequence: (B, T, W) encoded steps and lengths (B,) to (B, `width`).

None may look past an event's own length: what pads a short sequence must not matter.
"""

from typing import Final

import torch
from torch import Tensor, nn


def last_valid(states: Tensor, lengths: Tensor) -> Tensor:
    """(B, H): of states (B, T, H) the one at the sequence's last step."""
    last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.size(2))
    return states.gather(1, last).squeeze(1)


class Recurrent(nn.Module):
    """LSTM, GRU or plain RNN, reading forward only, so its last valid state has not seen the padding."""

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__()
        cells = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        self.cell = cells[kind](inputs, hidden, batch_first=True)
        self.width = hidden

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.cell(steps)
        return last_valid(states, lengths)


class Convolution(nn.Module):
    """Two causal 1-D convolutions over time: the second sees 1 + 2 * (kernel - 1) = 7 steps with the default kernel."""

    pad: Final[int]

    def __init__(self, inputs: int, hidden: int, kernel: int = 4) -> None:
        super().__init__()
        self.pad = kernel - 1
        self.first = nn.Conv1d(inputs, hidden, kernel)
        self.second = nn.Conv1d(hidden, hidden, kernel)
        self.width = hidden

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        states = steps.transpose(1, 2)
        states = torch.relu(self.first(nn.functional.pad(states, (self.pad, 0))))
        states = torch.relu(self.second(nn.functional.pad(states, (self.pad, 0))))
        return last_valid(states.transpose(1, 2), lengths)


class Attention(nn.Module):
    """The current step asks, all valid steps answer: scaled dot-product attention with `heads` heads.

    Vaswani et al., "Attention Is All You Need", NIPS 2017; the positions are learnt and count back from the end.
    """

    heads: Final[int]

    def __init__(self, inputs: int, hidden: int, length: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.inner = nn.Linear(inputs, hidden)
        self.position = nn.Embedding(length, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(2 * hidden, hidden)
        self.width = hidden

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        batch, length = steps.size(0), steps.size(1)
        back = lengths.unsqueeze(1) - 1 - torch.arange(length, device=steps.device).unsqueeze(0)
        padding = back < 0
        states = torch.relu(self.inner(steps)) + self.position(back.clamp(min=0))
        current = last_valid(states, lengths)
        query = self.query(current).view(batch, self.heads, 1, -1)
        keys_values = self.key_value(states).view(batch, length, 2, self.heads, -1)
        keys = keys_values[:, :, 0].permute(0, 2, 3, 1)
        values = keys_values[:, :, 1].transpose(1, 2)
        weights = torch.matmul(query, keys) * (float(query.size(3)) ** -0.5)
        weights = weights.masked_fill(padding.view(batch, 1, 1, length), -1e9).softmax(dim=3)
        answer = torch.matmul(weights, values).reshape(batch, -1)
        return torch.relu(self.out(torch.cat([current, answer], dim=1)))
