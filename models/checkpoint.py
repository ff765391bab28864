"""Where an interrupted training goes on: weights, optimizer and facts of a stage in one .npz, without pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Found:
    """What a checkpoint file holds."""

    arrays: Mapping[str, NDArray[Any]]
    facts: dict[str, Any]

    def weights(self, name: str) -> Weights:
        """A state dict that was saved under this name."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Moments and step counts of every parameter."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self.weights("optimizer").items():
            position, _, name = key.partition("/")
            state.setdefault(int(position), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of one stage of a training that is known by its `key`; no path: nothing is kept."""

    path: Path | None
    key: str

    def load(self) -> Found | None:
        """None when there is none, it is damaged, or it belongs to other data, options or code. Blocks."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
        except (OSError, ValueError, KeyError, EOFError):
            return None
        return Found(arrays, facts) if facts.pop("key", None) == self.key else None

    def save(
        self, states: Mapping[str, Mapping[str, Tensor]], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
    ) -> None:
        """Replaces the file in one step. Blocks."""
        if self.path is None:
            return
        moments = {
            f"{position}/{name}": value
            for position, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        arrays = {
            f"{name}/{key}": value.detach().cpu().numpy()
            for name, state in {**states, "optimizer": moments}.items()
            for key, value in state.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, facts=np.array(json.dumps({**facts, "key": self.key})), **arrays)
        temporary.replace(self.path)


NO_CHECKPOINT = Checkpoint(None, "")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder of a training's checkpoints; no folder: none are kept."""

    folder: Path | None = None
    key: str = ""

    def stage(self, name: str) -> Checkpoint:
        """Of one stage, such as one member of an ensemble."""
        file = f"{name.replace(' ', '-')}.npz"
        return Checkpoint(None if self.folder is None else self.folder / file, self.key)

    def clear(self) -> None:
        """Removes the folder: the training is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
