"""An interrupted training goes on where it stopped, and ends as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import Checkpoints
from models.fitting import FitOptions, Progress
from models.nets.risknet import NetOptions
from models.train import TrainedModel, train
from tests.unit.model_fixtures import planted, quick_options

OPTIONS = FitOptions(epochs=4, batch_size=32, learning_rate=1e-2, epoch_steps=1, patience=9)
NET = NetOptions(architecture="mlp", hidden=8, width=8, knots=2)


class Killed(Exception):
    pass


def weights(trained: TrainedModel) -> bytes:
    return b"".join(value.numpy().tobytes() for value in trained.net.state_dict().values())


@pytest.mark.parametrize(("stage", "epoch"), [("member 1", 2), ("member 1 refit", 1), ("member 2", 3)])
def test_a_training_killed_anywhere_ends_with_the_same_bits(tmp_path: Path, stage: str, epoch: int) -> None:
    dataset = planted(5, 1500, aggregate_signal=True)
    options = quick_options(dataset, fit=OPTIONS, refit=True, ensemble=2, net=NET)
    expected = weights(train(dataset, options))
    folder = tmp_path / "checkpoints"

    def kill(progress: Progress) -> None:
        # In the middle of the epoch that follows the last one saved.
        here = progress.stage == stage and progress.figures.get("epoch") == epoch
        if here and progress.done % (progress.total // OPTIONS.epochs) > 0:
            raise Killed

    with pytest.raises(Killed):
        train(dataset, options, kill, checkpoint_folder=folder)
    assert any(folder.iterdir())
    epochs: list[tuple[str, float]] = []

    def note(progress: Progress) -> None:
        if "epoch" in progress.figures:
            epochs.append((progress.stage, progress.figures["epoch"]))

    assert weights(train(dataset, options, note, checkpoint_folder=folder)) == expected
    assert min(number for name, number in epochs if name == stage) >= epoch
    assert not folder.exists()


def test_checkpoints_of_other_options_or_damaged_ones_are_not_used(tmp_path: Path) -> None:
    dataset = planted(6, 1500, aggregate_signal=True)
    options = quick_options(dataset, fit=replace(OPTIONS, epochs=2), net=NET)
    expected = weights(train(dataset, options))
    folder = tmp_path / "checkpoints"

    def kill(progress: Progress) -> None:
        if progress.stage == "calibrate":
            raise Killed

    with pytest.raises(Killed):
        train(dataset, replace(options, seed=9), kill, checkpoint_folder=folder)
    assert weights(train(dataset, options, checkpoint_folder=folder)) == expected
    for content in (b"", b"no archive"):
        folder.mkdir()
        (folder / "member-1.npz").write_bytes(content)
        assert weights(train(dataset, options, checkpoint_folder=folder)) == expected


def test_a_checkpoint_that_would_unpickle_is_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "member-1.npz", facts=np.array([{}], dtype=object), allow_pickle=True)
    assert Checkpoints(tmp_path, "key").stage("member-1").load() is None
