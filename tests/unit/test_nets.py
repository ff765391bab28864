"""The architectures behind one interface: what padding may not do, twins of knots, ensembles, the anomaly head."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.export import export_twin, golden_inputs, script
from models.fitting import FitOptions
from models.nets.encoding import ColumnStatistics, KnotEncoder
from models.nets.risknet import ARCHITECTURES, NetOptions, RiskNet
from models.nets.scoring import ANOMALY, ScoringNet, output_kinds
from models.pruning import smaller
from models.splits import split
from models.statistics import column_statistics
from models.train import train
from models.unsupervised import pretrain
from stream.errors import ConfigError
from stream.features.spec import Column
from stream.scoring.torchscript import LoadedProgram
from tests.unit.model_fixtures import DAY_MS, planted, quick_options, random_batch, random_columns, tiny_domain

DOMAIN = tiny_domain()
QUICK = FitOptions(epochs=1, batch_size=128, learning_rate=1e-2, epoch_steps=1)


def statistics(columns: tuple[Column, ...], knots: int = 4) -> ColumnStatistics:
    random = np.random.default_rng(0)
    fraud = random.random(2000) < 0.1
    return column_statistics(random_columns(random, 2000, columns), columns, fraud=fraud, knots=knots)


def net(architecture: str, seed: int = 0) -> RiskNet:
    torch.manual_seed(seed)
    options = NetOptions(architecture=architecture, hidden=16, embedding=2, width=16)
    return RiskNet(
        statistics(DOMAIN.step_columns), statistics(DOMAIN.aggregate_columns), options, DOMAIN.sequence_length
    ).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_scripts_and_ignores_the_padding(architecture: str) -> None:
    made = net(architecture)
    scoring = ScoringNet([made], made.heads).eval()
    steps, lengths, aggregates = batch = random_batch(3, 40, DOMAIN)
    program = LoadedProgram(script(scoring, batch))
    expected = program.run(*batch)
    assert set(expected) == set(output_kinds(scoring.heads))
    padding = np.arange(DOMAIN.sequence_length)[None, :] >= lengths[:, None]
    assert padding.any()
    steps[padding] = 7.0
    for name, values in program.run(steps, lengths, aggregates).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
    alone = [program.run(*(part[event : event + 1] for part in batch))["log_odds"][0] for event in range(5)]
    np.testing.assert_allclose(alone, expected["log_odds"][:5], atol=1e-5)


def archives() -> dict[str, str]:
    """What each architecture's archive hashes to."""
    inputs = random_batch(3, 40, DOMAIN)
    made = {architecture: net(architecture) for architecture in ARCHITECTURES}
    return {
        name: hashlib.sha256(script(ScoringNet([one], one.heads).eval(), inputs)).hexdigest()
        for name, one in made.items()
    }


def test_an_archive_is_the_same_bytes_whatever_order_sets_have() -> None:
    command = [sys.executable, "-c", "import json, tests.unit.test_nets as t; print(json.dumps(t.archives()))"]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    ]
    one, *others = [json.loads(process.communicate(timeout=300)[0]) for process in started]
    assert set(one) == set(ARCHITECTURES)
    assert others == [one, one]


@pytest.mark.parametrize("architecture", ["gru-mlp", "cnn", "attention-mlp", "mlp"])
def test_the_torch_export_twin_of_other_architectures(architecture: str) -> None:
    made = net(architecture)
    scoring = ScoringNet([made], made.heads).eval()
    batch = random_batch(4, 9, DOMAIN)
    twin = torch.export.load(io.BytesIO(export_twin(scoring, batch))).module()
    for size in (1, 9):
        inputs = [torch.from_numpy(part[:size]) for part in batch]
        with torch.inference_mode():
            for name, values in twin(*inputs).items():
                torch.testing.assert_close(values, scoring(*inputs)[name], rtol=1e-5, atol=1e-5)


def test_an_unknown_architecture_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match="lstm-mlp, gru-mlp"):
        net("transformer")


def test_the_sequence_is_left_out_of_what_joins_the_branches_as_often_as_told() -> None:
    batch = [torch.from_numpy(part) for part in random_batch(5, 400, DOMAIN)]
    left_out = {}
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(1)
        options = NetOptions(hidden=16, embedding=2, width=16, dropout=0.0, sequence_dropout=share)
        made = RiskNet(
            statistics(DOMAIN.step_columns), statistics(DOMAIN.aggregate_columns), options, DOMAIN.sequence_length
        ).train()
        sequence, aggregate = made.branches(*batch)
        without = made.joined(torch.cat([torch.zeros_like(sequence), aggregate], dim=1)).squeeze(1)
        heads = made(*batch)
        left_out[share] = float(torch.isclose(heads[:, 0], without).float().mean())
        assert torch.equal(heads[:, 1], made.sequence_head(sequence).squeeze(1))  # its own head always reads it
        with torch.inference_mode():
            whole = made.joined(torch.cat([sequence, aggregate], dim=1)).squeeze(1)
            torch.testing.assert_close(made.eval()(*batch)[:, 0], whole)
    assert left_out[0.0] < 0.02
    assert left_out[1.0] == 1.0
    assert 0.4 < left_out[0.5] < 0.6


# --- knots


def test_the_knots_do_what_a_plain_loop_does() -> None:
    columns = (Column("a", "g"), Column("code", "g", 5), Column("b", "g", log=True), Column("constant", "g"))
    found = replace(
        statistics(columns[:1]),
        knots=np.array([[0, 1, 4], [np.inf] * 3, [10, 20, np.inf], [np.inf] * 3], np.float32),
    )
    rows = np.array([[-1, 3, 15, 7], [2.5, 0, 40, 7], [np.nan, 1, np.nan, 7], [1e30, 1, -1e30, 7]], np.float32)
    encoder = KnotEncoder(found)
    got = encoder(torch.from_numpy(rows)).numpy()
    assert encoder.width == 3
    for row, values in zip(rows, got, strict=True):
        expected = []
        for position, (start, end) in ((0, (0, 1)), (0, (1, 4)), (2, (10, 20))):
            through = (row[position] - start) / (end - start)
            expected.append(0.0 if np.isnan(through) else min(max(through, 0.0), 1.0))
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_knots_lie_where_the_frauds_are() -> None:
    random = np.random.default_rng(2)
    fraud = np.arange(20_000) < 200
    values: NDArray[np.float32] = np.where(fraud, random.normal(50, 1, 20_000), random.normal(0, 1, 20_000))
    edges = column_statistics(values[:, None].astype(np.float32), (Column("x", "g"),), fraud=fraud, knots=8).knots[0]
    edges = edges[np.isfinite(edges)]
    assert len(edges) <= 9
    assert (np.diff(edges) > 0).all()
    assert (edges > 45).sum() >= 3
    assert (edges < 5).sum() >= 3
    without = column_statistics(values[:, None].astype(np.float32), (Column("x", "g"),), knots=8).knots[0]
    assert (without[np.isfinite(without)] > 45).sum() <= 1


def test_beyond_what_training_saw_a_number_reads_as_the_outermost_seen() -> None:
    """An account's age, or its count of events, grows past all that the training period held."""
    dataset = planted(6, 2000, aggregate_signal=True)
    dataset.aggregates[:, 1] = np.linspace(0, 500, len(dataset))
    net = train(dataset, quick_options(dataset, fit=FitOptions(epochs=1, batch_size=128))).net
    steps, lengths, aggregates = (torch.from_numpy(array) for array in random_batch(0, 20, dataset.domain))
    seen = dataset.aggregates[split(dataset, int(dataset.time_ms[-1]) + 1, 2 * DAY_MS, 0.2).train, 1].max()
    said = []
    with torch.inference_mode():
        for age in (seen / 2, seen, 500.0, 10 * seen):
            aggregates[:, 1] = float(age)
            said.append(net(steps, lengths, aggregates)["log_odds"])
    assert not torch.equal(said[0], said[1])
    torch.testing.assert_close(said[2], said[1])
    torch.testing.assert_close(said[3], said[1])


def test_repeated_values_and_empty_columns_get_no_piece_of_no_length() -> None:
    columns = tuple(Column(name, "g") for name in ("flag", "constant", "absent", "few"))
    values = np.stack(
        [
            np.arange(500) % 50 == 0,
            np.full(500, 3.0),
            np.full(500, np.nan),
            np.where(np.arange(500) < 3, np.arange(500), np.nan),
        ],
        axis=1,
    ).astype(np.float32)
    found = column_statistics(values, columns, fraud=np.arange(500) < 30, knots=6)
    encoded = KnotEncoder(found)(torch.from_numpy(values)).numpy()
    assert np.isfinite(encoded).all()
    assert np.isfinite(found.knots[0]).sum() == 2
    assert not np.isfinite(found.knots[1:3]).any()


# --- several nets, no labels


def test_an_ensemble_is_the_mean_of_its_members_log_odds() -> None:
    members = [net("lstm-mlp", seed) for seed in range(3)]
    batch = [torch.from_numpy(part) for part in random_batch(1, 20, DOMAIN)]
    together = ScoringNet(members, members[0].heads)
    with torch.inference_mode():
        torch.testing.assert_close(together.raw(*batch), torch.stack([m(*batch) for m in members]).mean(dim=0))


def test_an_ensemble_trains_members_of_different_seeds_and_exports_one_module() -> None:
    dataset = planted(2, 2000, aggregate_signal=True)
    trained = train(dataset, quick_options(dataset, ensemble=2, fit=QUICK))
    first, second = (member.state_dict() for member in trained.net.nets)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    inputs = golden_inputs(trained.samples)
    assert set(LoadedProgram(script(trained.net, inputs)).run(*inputs)) == {
        "log_odds",
        "probability",
        "sequence",
        "aggregate",
    }


def test_the_anomaly_component_finds_what_is_unusual_without_labels() -> None:
    dataset = planted(3, 4000)
    fraud = dataset.label == 1
    random = np.random.default_rng(0)
    # Genuine events lie on a line, frauds off it: no column alone tells, the label is not needed.
    common = random.normal(size=len(dataset)).astype(np.float32)
    for place in range(4):
        own = random.normal(size=len(dataset)).astype(np.float32)
        dataset.aggregates[:, place] = np.where(fraud, own, common)
    options = quick_options(dataset, anomaly=True, fit=QUICK)
    trained = train(dataset, options)
    assert ANOMALY in trained.net.heads
    assert trained.metrics["validation_anomaly_average_precision"] > 3 * trained.metrics["validation_fraud_rate"]
    dataset.label[:] = np.where(dataset.label == 1, 0, 1)
    turned = train(dataset, options)
    for name, values in trained.net.anomaly.state_dict().items():
        assert torch.equal(values, turned.net.anomaly.state_dict()[name])


def test_pretraining_learns_the_branches_and_leaves_the_heads() -> None:
    dataset = planted(4, 3000)
    made = net("lstm-mlp")
    before = {name: value.clone() for name, value in made.state_dict().items()}
    from models.train import to_device

    tensors = to_device(dataset.steps, dataset, dataset.aggregates, "cpu")
    told: list[str] = []
    pretrain(made, tensors, np.arange(3000), 1, (0,), lambda progress: told.append(progress.stage))
    after = made.state_dict()
    assert told == ["pretrain"]
    assert not torch.equal(after["sequence.cell.weight_hh_l0"], before["sequence.cell.weight_hh_l0"])
    assert torch.equal(after["sequence_head.weight"], before["sequence_head.weight"])
    options = quick_options(dataset, fit=QUICK)
    plain, taught = train(dataset, options), train(dataset, replace(options, pretrain_epochs=1))
    name = "sequence.cell.weight_hh_l0"
    assert not torch.equal(plain.net.nets[0].state_dict()[name], taught.net.nets[0].state_dict()[name])


# --- pruning


@pytest.mark.parametrize("architecture", ["lstm-mlp", "gru", "mlp"])
def test_units_that_say_nothing_can_be_taken_out_unnoticed(architecture: str) -> None:
    made = net(architecture)
    with torch.no_grad():
        # The last 8 of 16 units of each layer get no weight on what they read: they always say the same, 0.
        if made.reads_sequence:
            cell = made.sequence.cell
            for parameter in (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0):
                parameter.view(-1, 16, *parameter.shape[1:])[:, 8:] = 0.0
        if made.reads_aggregates:
            for layer in (made.aggregate.layers[0], made.aggregate.layers[3]):
                layer.weight[8:], layer.bias[8:] = 0.0, 0.0
        if made.joins:
            made.joined[1].weight[8:], made.joined[1].bias[8:] = 0.0, 0.0
    small = smaller(made, made.options, 0.5, DOMAIN.sequence_length).eval()
    assert small.options.hidden == small.options.width == 8
    batch = [torch.from_numpy(part) for part in random_batch(2, 30, DOMAIN)]
    with torch.inference_mode():
        torch.testing.assert_close(small(*batch), made(*batch), rtol=1e-5, atol=1e-5)


def test_a_pruned_training_exports_the_smaller_net_and_says_what_it_cost() -> None:
    dataset = planted(2, 2000, aggregate_signal=True)
    options = quick_options(dataset, prune=0.5, refit=True, fit=replace(QUICK, epochs=3))
    trained = train(dataset, options)
    assert trained.net.nets[0].options.hidden == 8
    assert trained.pruning is not None
    assert trained.pruning.hidden == (16, 8)
    assert min(trained.pruning.us_per_event) > 0
    assert trained.metrics["validation_average_precision"] > 3 * trained.metrics["validation_fraud_rate"]
