"""The metrics' exposition, and the bulk histogram against the loop that it replaces."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from stream.instruments import BulkHistogram
from stream.metrics import (
    DECISIONS,
    FLAGS,
    LATENCY_BOUNDS_S,
    MODEL_ROLES,
    OUTCOMES,
    SCORE_BOUNDS,
    STAGES,
    Metrics,
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def engine_metrics(registry: CollectorRegistry) -> list[Metric]:
    return [metric for metric in registry.collect() if metric.name.startswith("riskstream_")]


def exposed(registry: CollectorRegistry) -> list[str]:
    """The exposition's samples, without those of the bookkeeping of prometheus_client."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#") and "_created" not in line]


def test_every_metric_has_the_prefix_and_a_help_text_that_gives_a_remedy(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    found = engine_metrics(registry)
    assert len(found) >= 30
    for metric in found:
        what, _, remedy = metric.documentation.partition(". ")
        assert what, metric.name
        assert len(remedy) > 20, f"{metric.name}: say what to do"
        assert "_ms" not in metric.name


def test_metrics_that_a_help_text_points_at_exist(metrics: Metrics, registry: CollectorRegistry) -> None:
    suffix = {"counter": "_total", "info": "_info"}
    names = {metric.name + suffix.get(metric.type, "") for metric in engine_metrics(registry)}
    for metric in engine_metrics(registry):
        for mentioned in re.findall(r"riskstream_\w+", metric.documentation):
            assert mentioned in names, f"{metric.name} mentions {mentioned}"


def test_settings_that_a_help_text_points_at_exist(metrics: Metrics, registry: CollectorRegistry) -> None:
    from stream.config import Settings

    for metric in engine_metrics(registry):
        for section, field in re.findall(r"\b(kafka|redis|state|batch|scoring)\.(\w+)", metric.documentation):
            assert field in type(getattr(Settings(), section)).model_fields, f"{metric.name}: {section}.{field}"


def test_labels_cannot_carry_identities(metrics: Metrics) -> None:
    allowed = {
        "partition",
        "outcome",
        "decision",
        "flag",
        "stage",
        "reason",
        "pool",
        "operation",
        "step",
        "kind",
        "topic",
        "role",
        "model",
        "band",
        "field",
        "champion",
        "challenger",
    }
    for collector in vars(metrics).values():
        assert set(getattr(collector, "_labelnames", ())) <= allowed


@pytest.mark.parametrize("bounds", [SCORE_BOUNDS, LATENCY_BOUNDS_S])
def test_the_bulk_histogram_exposes_what_the_loop_does(bounds: tuple[float, ...]) -> None:
    chance = np.random.default_rng(7)
    bulk_registry, loop_registry = CollectorRegistry(), CollectorRegistry()
    bulk = BulkHistogram("some_seconds", "Help.", bounds, bulk_registry)
    loop = Histogram("some_seconds", "Help.", buckets=bounds, registry=loop_registry)
    for size in (0, 1, 500):
        # The bounds themselves are among the values, so that every edge is met.
        values = np.concatenate([chance.integers(0, 1200, size), chance.choice(bounds, size)]).astype(float)
        bulk.observe(values)
        for value in values:
            loop.observe(value)
        assert exposed_equal(exposed(bulk_registry), exposed(loop_registry))
    kinds = [line for line in generate_latest(bulk_registry).decode().splitlines() if line.startswith("#")]
    assert kinds == ["# HELP some_seconds Help.", "# TYPE some_seconds histogram"]


def exposed_equal(bulk: list[str], loop: list[str]) -> bool:
    """Counts to the unit; sums to rounding, as the order of addition differs."""
    assert len(bulk) == len(loop)
    for ours, theirs in zip(bulk, loop, strict=True):
        (name, value), (other_name, other_value) = ours.rsplit(" ", 1), theirs.rsplit(" ", 1)
        assert name == other_name
        assert float(value) == (pytest.approx(float(other_value)) if "_sum" in name else float(other_value)), name
    return True


@settings(max_examples=100, derandomize=True, database=None)
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=40))
def test_any_values_are_counted_as_the_loop_counts_the_finite_ones(values: list[float]) -> None:
    registry, bounds = CollectorRegistry(), (0.0, 1.0, 10.0)
    BulkHistogram("x", "Help.", bounds, registry).observe(np.asarray(values, dtype=np.float32))
    finite = [value for value in values if np.isfinite(value)]
    for bound in bounds:
        expected = sum(value <= bound for value in finite)
        assert registry.get_sample_value("x_bucket", {"le": str(bound)}) == expected
    assert registry.get_sample_value("x_bucket", {"le": "+Inf"}) == len(finite)
    assert registry.get_sample_value("x_count") == len(finite)


def test_bounds_must_rise(registry: CollectorRegistry) -> None:
    for bounds in [(), (2.0, 1.0), (1.0, 1.0)]:
        with pytest.raises(ValueError, match="must rise"):
            BulkHistogram("x", "Help.", bounds, registry)


def test_the_identity_gap_is_what_the_counts_leave(metrics: Metrics, registry: CollectorRegistry) -> None:
    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"riskstream_{name}", {"partition": "3"} | labels)

    metrics.count_turn(3, read=10, scored=7, duplicates=2, dead_letters=1)
    assert value("identity_gap_events") == 0
    metrics.count_turn(3, read=5, scored=4, duplicates=0, dead_letters=0)
    metrics.count_turn(4, read=1, scored=1, duplicates=0, dead_letters=0)
    assert value("identity_gap_events") == 1
    assert value("events_in_total") == 15
    assert [value("events_total", outcome=outcome) for outcome in OUTCOMES] == [11, 2, 1]
    metrics.count_turn(3, read=0, scored=1, duplicates=0, dead_letters=0)
    assert value("identity_gap_events") == 0
    assert registry.get_sample_value("riskstream_identity_gap_events", {"partition": "4"}) == 0


def test_a_stage_adds_its_wall_and_cpu_time(registry: CollectorRegistry) -> None:
    wall, cpu = iter([10.0, 10.5, 20.0, 20.25]), iter([1.0, 1.125, 2.0, 2.0])
    metrics = Metrics(registry, wall_clock=lambda: next(wall), cpu_clock=lambda: next(cpu))
    with metrics.stage("score"):
        pass
    with pytest.raises(KeyError), metrics.stage("score"):
        raise KeyError("a stage that fails is timed as well")
    assert registry.get_sample_value("riskstream_stage_seconds_sum", {"stage": "score"}) == 0.75
    assert registry.get_sample_value("riskstream_stage_seconds_count", {"stage": "score"}) == 2
    assert registry.get_sample_value("riskstream_stage_cpu_seconds_total", {"stage": "score"}) == 0.125
    with pytest.raises(KeyError):
        metrics.stage("no such stage")


def test_every_stage_is_exposed_from_the_start(metrics: Metrics, registry: CollectorRegistry) -> None:
    for stage in STAGES:
        assert registry.get_sample_value("riskstream_stage_seconds_count", {"stage": stage}) == 0


def test_a_partition_that_left_has_no_gauges_and_keeps_its_counters(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.count_turn(3, read=1, scored=1, duplicates=0, dead_letters=0)
    for partition in ("3", "4"):
        for gauge in (metrics.restoring, metrics.restore_remaining, metrics.checkpoint_lag):
            gauge.labels(partition).set(5)
        metrics.consumer_lag.labels("transactions", partition).set(5)
    metrics.forget_partition(3, ["transactions", "labels"])
    metrics.forget_partition(9, ["transactions"])
    left = "\n".join(exposed(registry))
    for name in ("restoring", "restore_remaining_events", "checkpoint_lag_events"):
        assert f'riskstream_{name}{{partition="3"}}' not in left
        assert f'riskstream_{name}{{partition="4"}}' in left
    assert 'riskstream_consumer_lag_events{partition="3",topic="transactions"}' not in left
    assert 'riskstream_consumer_lag_events{partition="4",topic="transactions"}' in left
    assert 'riskstream_events_in_total{partition="3"} 1.0' in left
    assert 'riskstream_identity_gap_events{partition="3"} 0.0' in left


def test_the_model_of_a_role_replaces_the_one_before(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.set_model("champion", "lstm", "1", "abc")
    metrics.set_model("champion", "lstm", "2", "abc")
    metrics.set_model("challenger", "mlp", "7", "abc")
    lines = [line for line in exposed(registry) if "riskstream_model_info" in line]
    assert len(lines) == 2
    assert any('role="champion"' in line and 'version="2"' in line for line in lines)


def test_a_model_has_one_review_date(metrics: Metrics, registry: CollectorRegistry) -> None:
    def dates() -> list[str]:
        return [line for line in exposed(registry) if line.startswith("riskstream_model_review_by_timestamp_seconds{")]

    metrics.set_model("champion", "lstm", "1", "abc", review_by_ms=5_000)
    metrics.set_model("challenger", "mlp", "7", "abc", review_by_ms=7_000)
    metrics.set_model("champion", "lstm", "2", "abc", review_by_ms=6_000)
    assert [line.partition("{")[2] for line in dates()] == [
        'model="mlp@7",role="challenger"} 7.0',
        'model="lstm@2",role="champion"} 6.0',
    ]
    metrics.set_model("champion", "lstm", "3", "abc")
    assert len(dates()) == 1


def test_the_closed_sets_are_those_of_the_records() -> None:
    from stream.events import records
    from stream.scoring.lineup import CHALLENGERS, CHAMPION

    assert tuple(map(str, records.DECISIONS)) == DECISIONS
    assert {*map(str, records.Flag), "shared"} == set(FLAGS)
    assert (CHAMPION, *CHALLENGERS) == MODEL_ROLES


def test_counters_that_alerts_watch_begin_at_zero(metrics: Metrics, registry: CollectorRegistry) -> None:
    lines = exposed(registry)
    for line in (
        'riskstream_redis_errors_total{kind="unavailable"} 0.0',
        'riskstream_flags_total{flag="degraded"} 0.0',
        'riskstream_labels_total{outcome="folded"} 0.0',
        'riskstream_model_refusals_total{role="champion"} 0.0',
    ):
        assert line in lines


def test_two_registries_do_not_disturb_each_other() -> None:
    Metrics(CollectorRegistry())
    Metrics(CollectorRegistry())


def test_the_same_registry_refuses_the_same_histogram(registry: CollectorRegistry) -> None:
    BulkHistogram("x", "Help.", (1.0,), registry)
    with pytest.raises(ValueError, match="x"):
        BulkHistogram("x", "Help.", (1.0,), registry)
