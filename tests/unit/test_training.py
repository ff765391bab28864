"""Training: what a net learns, what it may not know, and that its exports are the same function."""

from __future__ import annotations

import io
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import calibrate
from models.dataset import FRAUD, GENUINE, MISSING, UNKNOWN, ReplayedBatch, TrainingSet, build, predecessors
from models.evaluate import evaluate, expected_calibration_error, recall_and_precision
from models.export import export_twin, golden_inputs, script
from models.fitting import FitOptions, Progress
from models.nets.encoding import CLIP, ColumnEncoder
from models.nets.risknet import NetOptions
from models.nets.scoring import output_kinds
from models.splits import known_by, split
from models.statistics import column_statistics, references
from models.train import TrainedModel, train
from stream.errors import ConfigError
from stream.features.spec import Column
from stream.scoring.torchscript import LoadedProgram
from tests.unit.model_fixtures import (
    DAY_MS,
    START_MS,
    planted,
    quick_model,
    quick_options,
    random_batch,
    random_columns,
    tiny_domain,
)

# --- what is learnt


def test_a_signal_in_the_sequence_is_found_by_the_sequence_branch() -> None:
    dataset = planted(1, sequence_signal=True)
    metrics = train(dataset, quick_options(dataset)).metrics
    assert metrics["validation_fraud_rate"] < 0.08
    assert metrics["validation_average_precision"] > 0.8
    assert metrics["validation_sequence_average_precision"] > 0.8
    assert metrics["validation_aggregate_average_precision"] < 0.2


def test_a_signal_in_the_aggregates_is_found_by_the_aggregate_branch() -> None:
    dataset = planted(2, aggregate_signal=True)
    trained = train(dataset, quick_options(dataset))
    metrics = trained.metrics
    assert next(iter(trained.importance.columns)) == "a0" == next(iter(trained.reference.columns))
    assert next(iter(trained.importance.groups)) == "a"
    assert metrics["validation_fraud_rate"] < 0.08
    assert metrics["validation_average_precision"] > 0.6
    assert metrics["validation_aggregate_average_precision"] > 0.6
    assert metrics["validation_sequence_average_precision"] < 0.2
    assert metrics["validation_ece"] < 0.02


def test_without_a_signal_nothing_is_found() -> None:
    dataset = planted(3)
    metrics = train(dataset, quick_options(dataset, fit=FitOptions(epochs=2, batch_size=128))).metrics
    assert metrics["validation_average_precision"] < 0.2
    assert abs(metrics["validation_mean_probability"] - metrics["validation_fraud_rate"]) < 0.01


def test_the_same_seed_gives_the_same_model_and_another_one_does_not() -> None:
    (first, _), (again, _), (other, _) = quick_model(seed=5), quick_model(seed=5), quick_model(seed=6)
    assert parameters(first).tobytes() == parameters(again).tobytes()
    assert first.metrics == again.metrics
    assert first.dataset_fingerprint == again.dataset_fingerprint
    assert parameters(first).tobytes() != parameters(other).tobytes()
    assert first.dataset_fingerprint != other.dataset_fingerprint


def test_training_leaves_the_random_state_and_the_threads_of_torch_alone() -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    quick_model(threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_progress_is_told_and_ends() -> None:
    dataset = planted(4, 2000, aggregate_signal=True)
    told: list[Progress] = []
    train(dataset, quick_options(dataset, fit=FitOptions(epochs=2, batch_size=64)), told.append)
    assert list(dict.fromkeys(p.stage for p in told)) == ["prepare", "member 1", "calibrate", "importance"]
    steps = [p for p in told if p.stage == "member 1"]
    assert [p.done for p in steps] == sorted(p.done for p in steps)
    assert steps[-1].done == steps[-1].total
    assert steps[-1].figures["epoch"] == 2
    assert 0 < steps[-1].figures["validation_average_precision"] <= 1


def parameters(trained: TrainedModel) -> NDArray[np.float32]:
    return np.concatenate([value.detach().numpy().ravel() for value in trained.net.state_dict().values()])


# --- what may not be known


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 20), st.integers(1, 60), st.sampled_from([0.1, 0.2, 0.5]))
def test_no_label_that_was_unknown_takes_part(seed: int, delay_days: int, until_day: int, share: float) -> None:
    dataset = with_random_delays(seed)
    until_ms, delay_ms = START_MS + until_day * DAY_MS, delay_days * DAY_MS
    try:
        parts = split(dataset, until_ms, delay_ms, share)
    except ConfigError:
        return
    assert (dataset.known_ms[parts.validation] <= until_ms).all()
    assert (dataset.time_ms[parts.validation] <= until_ms - delay_ms).all()
    assert (dataset.time_ms[parts.validation] >= parts.validation_from_ms).all()
    assert (dataset.known_ms[parts.train] <= parts.validation_from_ms).all()
    assert (dataset.time_ms[parts.train] <= parts.validation_from_ms - delay_ms).all()
    assert (dataset.label[np.concatenate([parts.train, parts.validation])] != UNKNOWN).all()
    assert not set(parts.train) & set(parts.validation)


def with_random_delays(seed: int) -> TrainingSet:
    """Labels that become known after 0 to 30 days; some never."""
    dataset = planted(seed, 400)
    random = np.random.default_rng(seed)
    dataset.known_ms[:] = dataset.time_ms + random.integers(0, 30 * DAY_MS, len(dataset))
    dataset.label[:] = random.choice([UNKNOWN, GENUINE, FRAUD], len(dataset), p=[0.1, 0.6, 0.3])
    return dataset


def test_labels_known_too_late_change_nothing() -> None:
    """The whole of it: turning around every label that was not known leaves the model as it was, bit for bit."""
    dataset = planted(7, 2000, aggregate_signal=True, delay_ms=3 * DAY_MS)
    options = quick_options(
        dataset,
        until_ms=START_MS + 40 * DAY_MS,
        label_delay_ms=3 * DAY_MS,
        fit=FitOptions(epochs=1, batch_size=128),
    )
    expected = parameters(train(dataset, options))
    late = dataset.known_ms > options.until_ms
    assert late.any()
    dataset.label[late] = 1 - dataset.label[late]
    assert parameters(train(dataset, options)).tobytes() == expected.tobytes()
    known = np.flatnonzero(~late)
    dataset.label[known[:200]] = 1 - dataset.label[known[:200]]
    assert parameters(train(dataset, options)).tobytes() != expected.tobytes()


def test_no_event_is_in_both_parts_when_labels_are_known_at_once() -> None:
    dataset = planted(8, 400)
    dataset.time_ms[:] = START_MS + np.arange(400) // 40 * DAY_MS
    dataset.known_ms[:] = dataset.time_ms
    dataset.label[::3] = FRAUD
    parts = split(dataset, START_MS + 30 * DAY_MS, 0, 0.25)
    assert len(parts.train) + len(parts.validation) == 400
    assert dataset.time_ms[parts.train].max() < parts.validation_from_ms == dataset.time_ms[parts.validation].min()


def test_quickly_known_labels_of_young_events_stay_out() -> None:
    dataset = planted(8, 400)
    dataset.known_ms[:] = dataset.time_ms
    moment = START_MS + 30 * DAY_MS
    known = known_by(dataset, moment, 7 * DAY_MS)
    assert dataset.time_ms[known].max() <= moment - 7 * DAY_MS
    assert known.sum() == (dataset.time_ms <= moment - 7 * DAY_MS).sum()


@pytest.mark.parametrize("until_day", [-1, 3, 5])
def test_too_little_history_is_told(until_day: int) -> None:
    with pytest.raises(ConfigError, match="--until"):
        split(planted(9, 300), START_MS + until_day * DAY_MS, 2 * DAY_MS, 0.2)


# --- the training set


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), max_size=60), st.integers(1, 5))
def test_predecessors_are_those_of_a_plain_loop(rows: list[tuple[int, int]], length: int) -> None:
    account = np.array([a for a, _ in rows], dtype=np.int32)
    lengths = np.array([n for _, n in rows], dtype=np.int64)
    for limits in (None, lengths):
        seen: dict[int, list[int]] = defaultdict(list)
        expected = np.full((len(rows), length), -1)
        for event, (who, limit) in enumerate(rows):
            seen[who].append(event)
            last = seen[who][-min(length, length if limits is None else limit) :]
            expected[event, : len(last)] = last
        np.testing.assert_array_equal(predecessors(account, length, limits), expected)


@dataclass
class FakeEvents:
    """What `build` reads of an EventBatch."""

    accounts: list[str]
    time_ms: NDArray[np.int64]
    amount_minor: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.accounts)


def replayed(seed: int, batches: int) -> tuple[Any, list[ReplayedBatch], list[NDArray[np.float32]]]:
    """Batches as the feature code gives them, made by a plain loop, and every kept event's sequence."""
    domain, random = tiny_domain(sequence_length=4), np.random.default_rng(seed)
    width = len(domain.step_columns)
    rows: dict[str, deque[NDArray[np.float32]]] = defaultdict(lambda: deque(maxlen=4))
    result, sequences = [], []
    for _ in range(batches):
        size = int(random.integers(1, 9))
        accounts = [f"account-{n}" for n in random.integers(0, 5, size)]
        duplicate = random.random(size) < 0.2
        steps, lengths = np.zeros((size, 4, width), np.float32), np.ones(size, np.int64)
        own = random_columns(random, size, domain.step_columns).astype(np.float16).astype(np.float32)
        for event in np.flatnonzero(~duplicate):
            row = rows[accounts[event]]
            if random.random() < 0.1:
                row.clear()  # idle past the horizon: reads as new
            row.append(own[event])
            steps[event, : len(row)], lengths[event] = list(row), len(row)
            sequences.append(np.array(row))
        aggregates = random_columns(random, size, domain.aggregate_columns)
        assembled = SimpleNamespace(steps=steps, lengths=lengths, duplicate=duplicate, aggregates=aggregates)
        events = FakeEvents(accounts, random.integers(0, 100, size), random.integers(-1, 900, size))
        label = random.integers(-1, 2, size).astype(np.int8)
        channel = random.choice(np.array(["pos", "web", None], dtype=object), size)
        # The first batch lacks the field.
        texts = {"channel": channel} if result else {}
        result.append(ReplayedBatch(events, assembled, label, events.time_ms + 7, texts))
    return domain, result, sequences


def test_a_built_set_gives_back_the_sequences_that_the_features_made() -> None:
    domain, batches, sequences = replayed(0, 60)
    dataset = build(domain, iter(batches))
    assert len(dataset) == len(sequences) < sum(len(batch.label) for batch in batches)
    assert dataset.steps.dtype == np.float16
    steps, lengths = dataset.sequences(np.arange(len(dataset)))
    for event, expected in enumerate(sequences):
        assert lengths[event] == len(expected)
        np.testing.assert_array_equal(steps[event, : len(expected)], expected)
        assert not steps[event, len(expected) :].any()
    kept = [~batch.assembled.duplicate for batch in batches]
    for name, column in (("label", 2), ("known_ms", 3)):
        expected = np.concatenate([batch[column][keep] for batch, keep in zip(batches, kept, strict=True)])
        np.testing.assert_array_equal(getattr(dataset, name), expected)
    minor = np.concatenate([b.events.amount_minor[keep] for b, keep in zip(batches, kept, strict=True)])
    np.testing.assert_allclose(dataset.amount, np.where(minor < 0, np.nan, minor / 100), rtol=1e-6)
    channel = dataset.segments["channel"]
    named = [None if name == MISSING else name for name in (channel.names[code] for code in channel.code)]
    texts = [b.texts.get("channel", np.full(len(b.label), None)) for b in batches]
    assert named == np.concatenate([text[keep] for text, keep in zip(texts, kept, strict=True)]).tolist()


def test_steps_that_float16_would_round_stay_float32() -> None:
    domain, batches, _ = replayed(1, 5)
    batches[2].assembled.steps += np.float32(1e-6)
    assert build(domain, batches).steps.dtype == np.float32


def test_a_history_without_events_is_told() -> None:
    with pytest.raises(ConfigError, match="no event"):
        build(tiny_domain(), [])


def test_a_saved_set_loads_as_it_was_and_for_its_domain_only(tmp_path: Path) -> None:
    dataset = planted(3, 50)
    dataset.save(tmp_path / "set.npz")
    loaded = TrainingSet.load(tmp_path / "set.npz", dataset.domain)
    assert loaded.fingerprint() == dataset.fingerprint()
    assert loaded.segments["channel"].names == dataset.segments["channel"].names
    np.testing.assert_array_equal(loaded.segments["channel"].code, dataset.segments["channel"].code)
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]
    with pytest.raises(ConfigError, match="spec_id"):
        TrainingSet.load(tmp_path / "set.npz", tiny_domain(aggregate=9))
    np.savez(tmp_path / "pickled.npz", spec_id=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="pickle"):
        TrainingSet.load(tmp_path / "pickled.npz", dataset.domain)


@pytest.mark.parametrize(
    "name", ["steps", "predecessors", "aggregates", "label", "time_ms", "known_ms", "account", "amount"]
)
def test_every_array_is_in_the_fingerprint(name: str) -> None:
    dataset = planted(3, 50)
    before = dataset.fingerprint()
    getattr(dataset, name)[7] += 1
    assert dataset.fingerprint() != before


# --- normalisation


def test_the_encoder_does_what_a_plain_loop_does() -> None:
    random = np.random.default_rng(0)
    columns = (
        Column("plain", "g"),
        Column("code", "g", 5),
        Column("money", "g", log=True),
        Column("constant", "g"),
        Column("absent", "g"),
        Column("whole", "g"),
    )
    training = np.stack(
        [
            np.where(random.random(500) < 0.2, np.nan, random.normal(3, 2, 500)),
            random.integers(0, 5, 500),
            np.where(random.random(500) < 0.1, np.nan, np.exp(random.normal(4, 2, 500))),
            np.full(500, 7.0),
            np.full(500, np.nan),
            random.normal(-1, 0.1, 500),
        ],
        axis=1,
    ).astype(np.float32)
    statistics = column_statistics(training, columns)
    assert statistics.missing.tolist() == [True, False, True, False, False, False]
    encoder = ColumnEncoder(statistics, embedding=2)
    torch.nn.init.normal_(encoder.table.weight)
    table = encoder.table.weight.detach().numpy()
    rows = np.array([[2, 4, 90, 8, 1, -1], [np.nan] * 6, [1e9, 9, -5, 1e9, 1e9, -1e9], [0, -3, np.inf, 0, 0, 0]])
    encoded = encoder(torch.from_numpy(rows.astype(np.float32))).detach().numpy()
    for row, got in zip(rows, encoded, strict=True):
        expected = []
        for position, column in enumerate(columns):
            value = np.log1p(max(row[position], 0.0)) if column.log and not np.isnan(row[position]) else row[position]
            number = (value - statistics.mean[position]) * statistics.factor[position]
            known = not np.isnan(value) and column.cardinality == 0 and column.name not in ("constant", "absent")
            seen = training[:, position][~np.isnan(training[:, position])].astype(np.float64)
            seen = np.log1p(np.maximum(seen, 0.0)) if column.log else seen
            seen = (seen - statistics.mean[position]) * statistics.factor[position]
            low, high = (max(seen.min(), -CLIP), min(seen.max(), CLIP)) if known else (0.0, 0.0)
            expected.append(np.clip(number, low, high) if known else 0.0)
        expected += [float(np.isnan(row[0])), float(np.isnan(row[2]))]
        code = 0 if np.isnan(row[1]) else int(np.clip(row[1], 0, 4))
        np.testing.assert_allclose(got, [*expected, *table[code]], rtol=1e-5, atol=1e-5)


def test_statistics_are_not_moved_by_an_absurd_value() -> None:
    values = np.random.default_rng(1).normal(10, 2, (5000, 1)).astype(np.float32)
    values[0] = 1e9
    statistics = column_statistics(values, (Column("amount", "g"),))
    assert abs(statistics.mean[0] - 10) < 0.2
    assert abs(1 / statistics.factor[0] - 2) < 0.2
    rare = np.zeros((5000, 1), np.float32)
    rare[:3] = 1.0
    assert column_statistics(rare, (Column("flag", "g"),)).factor[0] > 0


def test_a_code_or_a_column_that_training_never_met_says_nothing() -> None:
    dataset = planted(5, 2000, aggregate_signal=True)
    dataset.aggregates[:, 5] = np.where(dataset.aggregates[:, 5] == 11, 3, dataset.aggregates[:, 5])
    dataset.aggregates[:, 1] = np.nan
    net = train(dataset, quick_options(dataset, fit=FitOptions(epochs=1, batch_size=128))).net
    assert not net.nets[0].aggregate.columns.table.weight[11].any()
    assert net.nets[0].aggregate.columns.table.weight[3].any()
    batch = [torch.from_numpy(array) for array in random_batch(0, 20, dataset.domain)]
    with torch.inference_mode():
        expected = net(*batch)["probability"]
        batch[2][:, 1] = 100.0
        assert torch.equal(net(*batch)["probability"], expected)


def test_references_are_the_usual_values() -> None:
    columns = (Column("number", "g"), Column("seldom", "g"), Column("code", "g", 9), Column("never", "g"))
    values = np.array([[1, np.nan, 4, np.nan], [2, np.nan, 4, np.nan], [9, 5, 8, np.nan]], np.float32)
    assert references(values, columns) == {"number": 2.0, "seldom": None, "code": 4.0, "never": None}


# --- calibration and thresholds


def test_platt_recovers_a_shift_and_a_stretch() -> None:
    random = np.random.default_rng(0)
    true = random.normal(-3, 2, 40_000)
    label = (random.random(40_000) < 1 / (1 + np.exp(-true))).astype(np.int64)
    slope, intercept = calibrate.fit_platt((true - 1.0) / 2.0, label)
    assert slope == pytest.approx(2.0, rel=0.05)
    assert intercept == pytest.approx(1.0, abs=0.1)
    probability = 1 / (1 + np.exp(-(slope * (true - 1.0) / 2.0 + intercept)))
    assert expected_calibration_error(probability, label) < 0.01
    assert expected_calibration_error(1 / (1 + np.exp(-(true + 2))), label) > 0.05


@pytest.mark.parametrize("frauds", [3, 60])
def test_platt_stays_bounded_where_data_are_few_or_separable(frauds: int) -> None:
    label = np.zeros(1000, np.int64)
    label[:frauds] = 1
    slope, intercept = calibrate.fit_platt(np.where(label, 5.0, -5.0), label)
    assert 0 < slope <= calibrate.SLOPE_RANGE[1]
    probability = 1 / (1 + np.exp(-(slope * np.where(label, 5.0, -5.0) + intercept)))
    assert probability.mean() == pytest.approx(label.mean(), abs=0.002)
    reversed_slope, _ = calibrate.fit_platt(np.where(label, -5.0, 5.0), label)
    assert reversed_slope > 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 300), st.sampled_from([0.005, 0.05, 0.5, 0.99]), st.integers(1, 400))
def test_thresholds_keep_to_the_stated_rate_also_with_ties(seed: int, size: int, rate: float, values: int) -> None:
    random = np.random.default_rng(seed)
    probability = random.integers(0, values + 1, size) / (values + 1)
    label = (random.random(size) < probability).astype(np.int64)
    thresholds = calibrate.choose_thresholds(probability, label, rate)
    alerts = int((probability >= thresholds.review).sum())
    assert alerts <= max(1, int(rate * size))
    assert thresholds.review <= thresholds.decline
    assert thresholds.review_rate == alerts / size
    without_ties = len(set(probability.tolist())) == size
    if without_ties:
        assert alerts == max(1, int(rate * size))
    bands = calibrate.score_bands(probability, thresholds)
    assert [band.name for band in bands] == ["minimal", "low", "medium", "high", "critical"]
    assert bands[0].minimum == 0.0
    assert [band.minimum for band in bands] == sorted(band.minimum for band in bands)


def test_a_decline_was_mostly_right() -> None:
    random = np.random.default_rng(0)
    probability = random.random(20_000) ** 8
    label = (random.random(20_000) < probability).astype(np.int64)
    thresholds = calibrate.choose_thresholds(probability, label, 0.2)
    _, precision = recall_and_precision(probability, label, thresholds.decline)
    assert precision >= calibrate.DECLINE_PRECISION
    assert thresholds.decline_rate <= thresholds.review_rate / 2 + 1e-9


def test_the_figures_of_a_small_case_counted_by_hand() -> None:
    probability, label = np.array([0.9, 0.8, 0.4, 0.2, 0.1]), np.array([1, 0, 1, 0, 0])
    figures = evaluate(probability, label, 0.5)
    assert figures["auc"] == pytest.approx(5 / 6)
    assert figures["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["recall_at_review"] == 0.5
    assert figures["precision_at_review"] == 0.5
    assert expected_calibration_error(probability, label, bins=2) == pytest.approx((0.7 + 0.3) / 5)
    assert np.isnan(recall_and_precision(probability, label, 0.95)[1])


# --- the exports


def test_torchscript_and_torch_export_are_the_same_function() -> None:
    trained, domain = quick_model()
    inputs = golden_inputs(trained.samples)
    program = LoadedProgram(script(trained.net, inputs))
    exported = torch.export.load(io.BytesIO(export_twin(trained.net, inputs)))
    assert exported.example_inputs is None
    twin = exported.module()
    for batch in (inputs, *(random_batch(size, size, domain) for size in (1, 2, 33))):
        expected = program.run(*batch)
        assert set(expected) == set(output_kinds(trained.net.heads))
        with torch.inference_mode():
            got = twin(*(torch.from_numpy(array) for array in batch))
        for name, values in expected.items():
            np.testing.assert_allclose(got[name].numpy(), values, rtol=1e-5, atol=1e-5)


def test_golden_inputs_cover_the_edges() -> None:
    trained, domain = quick_model()
    steps, lengths, aggregates = golden_inputs(trained.samples)
    assert {1, domain.sequence_length} <= set(lengths.tolist())
    assert np.isnan(steps).all(axis=(1, 2)).any()
    assert np.isnan(aggregates).all(axis=1).any()
    assert (np.abs(aggregates) > 1e29).any()
    assert len(trained.samples[0]) == 40


def test_a_net_of_numbers_only_trains_and_exports() -> None:
    domain = tiny_domain(categories=0)
    dataset = planted(1, 2000, aggregate_signal=True, domain=domain)
    np.nan_to_num(dataset.steps, copy=False)
    np.nan_to_num(dataset.aggregates, copy=False)
    trained = train(dataset, quick_options(dataset, fit=FitOptions(epochs=1, batch_size=128)))
    inputs = golden_inputs(trained.samples)
    assert np.isfinite(LoadedProgram(script(trained.net, inputs)).run(*inputs)["log_odds"]).all()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"step_columns": ("s0", "typo")}, "step_columns.*typo"),
        ({"aggregate_columns": ()}, "aggregate_columns"),
        ({"alert_rate": 0.0}, "alert_rate"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"label_delay_ms": -1}, "label_delay_ms"),
        ({"net": NetOptions(architecture="lsmt")}, "choose one of lstm-mlp"),
        ({"net": NetOptions(architecture="cnn"), "prune": 0.5}, "choose another --architecture"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], match: str) -> None:
    dataset = planted(1, 500)
    with pytest.raises(ConfigError, match=match):
        train(dataset, quick_options(dataset, **changes))
