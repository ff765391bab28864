"""Features and state of one account in plain Python: what a handler that sees one event at a time keeps.

Fewer features than the engine's (no entities, no tiles; the rest of the model's columns stay 0), so the
comparison errs in the rivals' favour. The state is JSON: both frameworks store it as such.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

_RING = 64
_LENGTH = 16
_WINDOWS_S = (600, 3_600, 86_400, 604_800, 2_592_000)

State = dict[str, Any]


def new_state() -> State:
    return {"steps": [], "ring": [], "n": 0, "mean": 0.0, "m2": 0.0, "first": 0.0}


def fold(state: State, event: dict[str, Any], width: int, depth: int) -> tuple[list[list[float]], list[float]]:
    """(steps, aggregates) of the event for the model, and the event taken into the state."""
    now = datetime.fromisoformat(event["timestamp"]).timestamp()
    amount, merchant, country = event["amount"], event["merchant_id"], event["country"]
    ring, logged = state["ring"], math.log1p(amount)
    counts, sums, shops = [], [], []
    for window in _WINDOWS_S:
        within = [entry for entry in ring if now - entry[0] < window]
        counts.append(float(len(within)))
        sums.append(sum(entry[1] for entry in within))
        shops.append(float(len({entry[2] for entry in within})))
    deviation = math.sqrt(state["m2"] / state["n"]) if state["n"] > 1 else 1.0
    z = (logged - state["mean"]) / (deviation or 1.0)
    gap = now - ring[-1][0] if ring else -1.0
    same = next((now - entry[0] for entry in reversed(ring) if entry[2] == merchant), -1.0)
    abroad = next((now - entry[0] for entry in reversed(ring) if entry[3] != country), -1.0)
    hour = now % 86_400 / 86_400 * 2 * math.pi
    step = [logged, z, gap, same, abroad, *counts[:3], sums[2], shops[2], math.sin(hour), math.cos(hour)]
    aggregates = [amount, state["mean"], z, *counts, *sums, *shops, gap, same, abroad, float(state["n"]), now]
    state["steps"] = [*state["steps"][-(_LENGTH - 1) :], step + [0.0] * (width - len(step))]
    ring.append([now, amount, merchant, country])
    del ring[:-_RING]
    state["n"] += 1
    change = logged - state["mean"]
    state["mean"] += change / state["n"]
    state["m2"] += change * (logged - state["mean"])
    return state["steps"], aggregates + [0.0] * (depth - len(aggregates))


class Model:
    """The same TorchScript program, one thread, one event at a time."""

    def __init__(self, bundle: Path) -> None:
        torch.set_num_threads(1)
        manifest = json.loads((bundle / "manifest.json").read_text())
        thresholds = manifest["thresholds"]
        self.width, self.depth = _widths(manifest)
        self._review, self._decline = thresholds["review"], thresholds["decline"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = torch.jit.load(str(bundle / "model.ts")).eval()  # type: ignore[no-untyped-call]

    def score(self, steps: Sequence[Sequence[float]], aggregates: Sequence[float]) -> dict[str, Any]:
        padded = np.zeros((1, _LENGTH, self.width), dtype=np.float32)
        padded[0, : len(steps)] = steps
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            found = self._module(
                torch.from_numpy(padded),
                torch.tensor([len(steps)]),
                torch.from_numpy(np.asarray([aggregates], dtype=np.float32)),
            )
        probability = float(found["probability"][0])
        decision = "decline" if probability >= self._decline else "review" if probability >= self._review else "approve"
        return {"probability": probability, "decision": decision}


def _widths(manifest: dict[str, Any]) -> tuple[int, int]:
    return len(manifest["step_columns"]), len(manifest["aggregate_columns"])
