"""One fit of a net: how long it goes on, and what decays meanwhile."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from models.fitting import FitOptions, Fitted, Progress, decay_groups
from models.nets.risknet import NetOptions, RiskNet
from models.statistics import column_statistics
from models.train import train
from tests.unit.model_fixtures import planted, quick_options, random_columns, tiny_domain


def test_the_refit_goes_through_the_whole_schedule_unless_the_first_fit_was_stopped_early() -> None:
    options = FitOptions(epochs=10, patience=4)
    assert Fitted(best_epoch=7, epochs=10, average_precision=0.5, genuine_share=1.0).suiting(options) == options
    stopped = Fitted(best_epoch=3, epochs=7, average_precision=0.5, genuine_share=1.0)
    assert stopped.suiting(options) == FitOptions(epochs=3, patience=4)


@pytest.mark.parametrize(("patience", "stopped"), [(1, True), (9, False)])
def test_epochs_of_both_fits_are_told(patience: int, stopped: bool) -> None:
    dataset = planted(3, 2000)  # no signal: no epoch is better than a lucky early one for long
    fit = FitOptions(epochs=6, patience=patience, batch_size=128, learning_rate=1e-2, epoch_steps=1)
    told: dict[str, set[float]] = defaultdict(set)

    def note(progress: Progress) -> None:
        if "epoch" in progress.figures:
            told[progress.stage].add(progress.figures["epoch"])

    metrics = train(dataset, quick_options(dataset, fit=fit, refit=True, importance=False), note).metrics
    assert (metrics["epochs"] < 6) == stopped
    assert max(told["member 1"]) == metrics["epochs"]
    assert max(told["member 1 refit"]) == (metrics["best_epoch"] if stopped else 6)


def test_matrices_decay_and_biases_do_not() -> None:
    columns = tiny_domain().step_columns
    statistics = column_statistics(random_columns(np.random.default_rng(0), 500, columns), columns)
    made = RiskNet(statistics, statistics, NetOptions(hidden=16, embedding=2, width=16), 8)
    groups = decay_groups(made, 0.7)
    decaying, free = ({id(p) for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.7, 0.0]
    for name, parameter in made.named_parameters():
        assert (id(parameter) in decaying) == ("weight" in name), name
    assert decaying | free == {id(p) for p in made.parameters()}
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)  # no signal: only the decay moves anything
    optimizer.step()
    for name, parameter in made.named_parameters():
        kept = 1.0 - 0.1 * 0.7 if "weight" in name else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept)
