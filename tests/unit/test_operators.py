"""Operators: columns, known values worked out by hand, extremes, and the same bits wherever a value stands.

That every operator computes what its docstring says, over random histories, is checked in tests/parity.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream.errors import ConfigError
from stream.features import norm, operators, view
from stream.features.assemble import check
from stream.features.columns import ColumnBuilder, category_code
from stream.features.money import Rates
from stream.features.spec import MAX_CATEGORY_CODE, Category
from tests.parity import streams
from tests.parity.naive_history import Event
from tests.parity.streams import DAY_MS, DOMAIN, HOUR_MS, Item, Shape

MONDAY_MS = 1_704_067_200_000  # 1 January 2024, 00:00 UTC
NOBODY = {"merchant": "m", "terminal": None, "device": None, "ip": None}


class Story:
    """A log written event by event, with plain values unless told otherwise."""

    def __init__(self) -> None:
        self.writer = streams.Writer(0, Shape(items=0))

    def event(self, time_ms: int, amount: float = 10.0, account: str = "a", **given: Any) -> Event:
        plain = {"entities": NOBODY, "latitude": None, "longitude": None, "amount_minor": round(amount * 100)}
        return self.writer.append(account, time_ms, **(plain | given))

    def fraud(self, event: Event, known_ms: int | None = None, **given: Any) -> None:
        self.writer.verdict(replace(streams.label_of(event, fraud=True), **given))
        if known_ms is not None:
            self.writer.log[-1] = replace(self.writer.log[-1], known_ms=known_ms)

    def last(self) -> dict[str, float]:
        """Aggregates and step columns of the last event by name."""
        return last_values(self.writer.log)


def last_values(log: Sequence[Item]) -> dict[str, float]:
    output = streams.run(streams.state(), log, streams.fixed(64))[log[-1].partition, log[-1].offset]
    step = output["steps"][output["lengths"] - 1]
    values = zip(DOMAIN.step_columns, step.tolist(), strict=True)
    return {c.name: v for c, v in zip(DOMAIN.aggregate_columns, output["aggregates"].tolist(), strict=True)} | {
        c.name: v for c, v in values if c.name.startswith("step_")
    }


# --- declarations


def test_columns_agree_with_what_is_computed() -> None:
    story = Story()
    story.event(MONDAY_MS)
    state = streams.state()
    streams.admit_new(state, story.writer.log)
    assembled = state.assemble(streams.event_batch([e for e in story.writer.log if isinstance(e, Event)]))
    assert assembled.steps.shape == (1, DOMAIN.sequence_length, len(DOMAIN.step_columns))
    assert assembled.aggregates.shape == (1, len(DOMAIN.aggregate_columns))
    assert assembled.steps.dtype == assembled.aggregates.dtype == np.float32


def test_what_is_already_a_logarithm_is_not_marked_for_one() -> None:
    assert operators.Count("c", "g").columns[0].log
    assert not operators.Count("c", "g", log=True).columns[0].log
    assert not operators.NormZ("z", "g").columns[0].log
    assert not any(column.log for column in DOMAIN.step_columns)


def test_codes_fit_float16() -> None:
    largest = max(column.cardinality for column in (*DOMAIN.step_columns, *DOMAIN.aggregate_columns))
    assert 0 < largest <= MAX_CATEGORY_CODE + 1
    assert np.arange(MAX_CATEGORY_CODE + 1).astype(np.float16).astype(int).tolist() == list(range(2048))


# --- known values


def test_the_first_event_of_an_account() -> None:
    story = Story()
    story.event(MONDAY_MS, 12.5)
    values = story.last()
    assert values["amount"] == 12.5
    assert values["step_amount"] == pytest.approx(math.log1p(12.5), rel=1e-3)
    assert [values[f"count_{w}"] for w in DOMAIN.windows] == [1] * 5
    assert [values[f"sum_{w}"] for w in DOMAIN.windows] == [12.5] * 5
    assert [values[f"merchants_{w}"] for w in DOMAIN.windows] == [1] * 5
    for name in ("gap", "gap_merchant", "usual_amount", "amount_z", "hour_share", "distance_km", "days_since_fraud"):
        assert math.isnan(values[name]), name
    for name in ("devices_7d", "past_events", "account_age_days", "usual_per_day", "merchant_count_24h"):
        assert values[name] == 0, name
    for name in ("device_count_24h", "terminal_frauds_7d", "ip_count_1h", "terminal_days_since_fraud", "new_device"):
        assert math.isnan(values[name]), name  # it has no such entity


def test_windows_are_open_at_their_start_and_closed_at_the_event() -> None:
    story = Story()
    story.event(MONDAY_MS, 1)
    story.event(MONDAY_MS + 1, 2)
    story.event(MONDAY_MS + 600_000, 4)
    story.event(MONDAY_MS + 600_000, 8)
    values = story.last()
    assert values["count_10min"] == 3
    assert values["sum_10min"] == 14
    assert values["count_1h"] == 4
    assert values["gap"] == 0


def test_a_late_event_sees_its_own_past_alone() -> None:
    story = Story()
    story.event(MONDAY_MS, 1)
    story.event(MONDAY_MS + HOUR_MS, 2)
    story.event(MONDAY_MS + 60_000, 4)
    values = story.last()
    assert values["count_24h"] == 2
    assert values["sum_24h"] == 5
    assert values["gap"] == 60
    assert values["past_events"] == 2


def test_the_calendar_of_a_monday_and_a_sunday() -> None:
    story = Story()
    story.event(MONDAY_MS)
    values = story.last()
    assert [values[n] for n in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")] == [0, 1, 0, 1]
    story.event(MONDAY_MS + 6 * DAY_MS + 18 * HOUR_MS)
    values = story.last()
    assert values["hour_sin"] == pytest.approx(-1)
    assert values["weekday_cos"] == pytest.approx(math.cos(2 * math.pi * (6 * 24 + 18) / 168))


def test_the_hour_habit_goes_round_midnight() -> None:
    story = Story()
    for hour in (22, 23, 24, 25, 36):
        story.event(MONDAY_MS + hour * HOUR_MS)
    story.event(MONDAY_MS + 48 * HOUR_MS)
    assert story.last()["hour_share"] == pytest.approx(3 / 5)


def test_the_norm_by_hand() -> None:
    story = Story()
    for i, amount in enumerate((9.0, 99.0)):
        story.event(MONDAY_MS + i * DAY_MS, amount)
    story.event(MONDAY_MS + 2 * DAY_MS, 999.0)
    values = story.last()
    mean, mine = math.log(10 * 100) / 2, math.log(1000)
    spread = math.sqrt(((math.log(10) - mean) ** 2 * 2 + 2) / 4)
    assert values["usual_amount"] == pytest.approx(math.exp(mean) - 1, rel=1e-3)
    assert values["amount_times_usual"] == pytest.approx(1000 / math.exp(mean), rel=1e-3)
    assert values["amount_z"] == pytest.approx((mine - mean) / spread, rel=1e-3)
    assert values["usual_per_day"] == 1


def test_distance_and_speed_by_hand() -> None:
    story = Story()
    story.event(MONDAY_MS, latitude=0.0, longitude=0.0)
    story.event(MONDAY_MS + HOUR_MS)  # without a place: the last known one stays
    story.event(MONDAY_MS + 10 * HOUR_MS, latitude=0.0, longitude=90.0)
    values = story.last()
    quarter = 6371.0088 * math.pi / 2
    assert values["distance_km"] == pytest.approx(quarter, rel=1e-6)
    assert values["speed_kmh"] == pytest.approx(quarter / 10, rel=1e-6)
    story.event(MONDAY_MS + 10 * HOUR_MS, latitude=0.0, longitude=-90.0)
    values = story.last()
    assert values["distance_km"] == pytest.approx(2 * quarter, rel=1e-6)
    assert values["speed_kmh"] == pytest.approx(2 * quarter * 60, rel=1e-6)  # a minute at least


def test_values_of_entities_by_hand() -> None:
    story = Story()
    first = story.event(MONDAY_MS, 10, "a")
    story.event(MONDAY_MS + 60_000, 30, "b")
    story.fraud(first, known_ms=MONDAY_MS + 60_000)
    story.event(MONDAY_MS + DAY_MS // 2, 20, "c")
    values = story.last()
    assert values["merchant_count_1h"] == 0
    assert values["merchant_count_24h"] == 2
    assert values["merchant_mean_times"] == pytest.approx(math.log(21 / 21), abs=1e-6)
    assert values["merchant_frauds_7d"] == 1
    assert values["merchant_fraud_share_30d"] == pytest.approx(0.01)  # no verdict can be expected yet
    assert values["account_frauds"] == 0
    story.event(MONDAY_MS + 8 * DAY_MS, 20, "c")
    values = story.last()
    assert values["merchant_fraud_share_7d"] == pytest.approx(1.01 / 4)
    assert values["merchant_days_since_genuine"] == 8
    assert values["merchant_streak"] == 0


def terminal(*accounts: str) -> Story:
    """Each account pays 10 three times at home, then once at terminal t; verdicts are left to the test."""
    story = Story()
    for account in accounts:
        for visit in range(3):
            story.event(MONDAY_MS + visit * HOUR_MS, 10, account)
    for day, account in enumerate(accounts):
        story.event(MONDAY_MS + (day + 1) * DAY_MS, 12, account, entities=NOBODY | {"terminal": "t"})
    return story


def test_a_terminal_all_of_whose_payments_became_frauds() -> None:
    story = terminal("a", "b", "c")
    visits = [item for item in story.writer.log if isinstance(item, Event) and item.entities["terminal"]]
    for event in visits[1:]:  # the first one stays genuine
        story.fraud(event, known_ms=event.time_ms + 7 * DAY_MS)
    story.event(MONDAY_MS + 11 * DAY_MS, 12, "d", entities=NOBODY | {"terminal": "t"})
    values = story.last()
    assert values["terminal_streak"] == values["terminal_unexplained_streak"] == 2
    assert values["terminal_streak_age"] == 9
    assert values["terminal_days_since_genuine"] == 10
    assert values["terminal_fraud_share_30d"] == pytest.approx(2.01 / 4)
    assert values["terminal_unexplained_share_7d"] == pytest.approx(2.01 / 4)


def test_a_fraud_above_the_usual_amount_does_not_point_at_the_terminal() -> None:
    story = terminal("a")
    bad = story.event(MONDAY_MS + 2 * DAY_MS, 95, "a", entities=NOBODY | {"terminal": "t"})
    story.fraud(bad, known_ms=MONDAY_MS + 9 * DAY_MS)
    story.event(MONDAY_MS + 9 * DAY_MS, 12, "a", entities=NOBODY | {"terminal": "t"})
    values = story.last()
    assert values["terminal_frauds_7d"] == values["terminal_streak"] == values["fraud_streak"] == 1
    assert values["terminal_unexplained_7d"] == values["unexplained_streak"] == 0
    assert values["fraud_streak_age"] == 7
    assert values["days_since_genuine"] == 8
    assert values["fraud_share_7d"] == pytest.approx(1.01 / 6)


def test_a_spree_of_large_amounts() -> None:
    story = Story()
    for i in range(10):
        story.event(MONDAY_MS + i * HOUR_MS, 9)
    for i in range(3):
        story.event(MONDAY_MS + (i + 1) * DAY_MS, 49)
    story.event(MONDAY_MS + 9 * DAY_MS, 9)
    values = story.last()
    usual = values["usual_amount"]
    assert 9 < usual < 14
    assert values["excess_14d"] == pytest.approx(3 * (49 - 2 * usual) / usual, rel=1e-2)
    assert values["excess_7d"] == pytest.approx(values["excess_14d"] / 3, rel=1e-6)
    assert values["largest_times_14d"] == pytest.approx(49 / usual, rel=1e-2)


def test_unconfirmed_large_amounts_move_the_norm_little() -> None:
    story = Story()
    for i in range(30):
        story.event(MONDAY_MS + i * HOUR_MS, 9)
    for i in range(5):
        story.event(MONDAY_MS + 2 * DAY_MS + i, 10_000)
    story.event(MONDAY_MS + 3 * DAY_MS, 9)
    assert story.last()["usual_amount"] < 15  # a plain mean of the logarithms would say 26


def test_members_of_attributes_as_categories_and_numbers() -> None:
    domain = replace(DOMAIN, categories=(Category("attributes.tier", 7),), numbers=("attributes.balance",))
    builder = ColumnBuilder(domain, Rates.base_only("USD"))
    attributes = [
        {"tier": "gold", "balance": 5},
        {"tier": 3, "balance": "5"},
        {"balance": True},
        None,
        {"balance": 10**400},
    ]
    events = [
        {"event_id": "e", "account_id": "a", "amount": 1.0, "currency": "USD", "attributes": a} for a in attributes
    ]
    zeros = np.zeros(len(events), np.int64)
    batch = builder.events(events, zeros, zeros.astype(np.int32), zeros)
    codes = [category_code(text, 7) for text in ("gold", "3", None, None, None)]
    assert batch.categories["attributes.tier"].tolist() == codes
    assert np.array_equal(batch.numbers["attributes.balance"], [5, np.nan, 1, np.nan, np.nan], equal_nan=True)


def test_step_vectors_know_the_account_alone() -> None:
    step = (*DOMAIN.step, operators.EntityCount("step_merchant", "merchant", log=True))
    with pytest.raises(ConfigError, match="EntityCount 'step_merchant' in `step`"):
        check(replace(DOMAIN, step=step))


def test_what_a_confirmed_fraud_takes_out_a_revision_puts_back() -> None:
    story = Story()
    for i, amount in enumerate((9.0, 99.0, 5.0)):
        bad = story.event(MONDAY_MS + i * 4 * HOUR_MS, amount)
    story.fraud(bad, known_ms=MONDAY_MS + DAY_MS)
    probe = story.event(MONDAY_MS + 2 * DAY_MS, 50)
    values = story.last()
    assert values["account_frauds"] == 1
    assert values["days_since_fraud"] == 1
    assert values["usual_amount"] == pytest.approx(math.sqrt(1000) - 1, rel=1e-3)
    assert values["hour_share"] == 1 / 2
    assert values["past_events"] == 3
    story.fraud(bad, fraud=False)
    story.event(probe.time_ms, 50)
    values = story.last()
    assert values["account_frauds"] == 0
    assert values["usual_amount"] == pytest.approx((10 * 100 * 6 * 51) ** 0.25 - 1, rel=1e-3)
    assert values["hour_share"] == 2 / 4


def test_labels_of_events_that_never_came_do_no_harm() -> None:
    story = Story()
    real = story.event(MONDAY_MS, 10)
    story.event(MONDAY_MS + DAY_MS, 10)
    for i in range(3):
        story.fraud(replace(real, event_id=f"ghost{i}", amount_minor=10**14))
    story.event(MONDAY_MS + 2 * DAY_MS, 10)
    values = story.last()
    assert math.isnan(values["usual_amount"])
    assert math.isnan(values["hour_share"]) or 0 <= values["hour_share"] <= 1
    story.event(MONDAY_MS + 3 * DAY_MS, 10)
    story.event(MONDAY_MS + 4 * DAY_MS, 10)
    story.event(MONDAY_MS + 5 * DAY_MS, 10)
    values = story.last()
    assert values["usual_amount"] >= 0
    assert 0 <= values["hour_share"] <= 1


def test_extremes_stay_finite_and_silent() -> None:
    story = Story()
    for i in range(70):
        story.event(MONDAY_MS + i, amount_minor=(10**14, 0, -1)[i % 3], latitude=90.0 * (-1) ** i, longitude=180.0)
    story.fraud(story.event(MONDAY_MS + 80, amount_minor=10**14))
    story.event(MONDAY_MS + 30 * DAY_MS, amount_minor=0, latitude=-90.0, longitude=-180.0)
    story.event(4_102_444_800_000, amount_minor=10**14)  # the year 2100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = streams.run(streams.state(), story.writer.log, streams.fixed(40))
    for output in outputs.values():
        assert not np.isinf(output["steps"]).any()
        assert not np.isinf(output["aggregates"]).any()
        assert np.nanmax(np.abs(output["steps"])) <= 60_000


# --- the same bits wherever a value stands

FEATURES = Path(view.__file__).parent


def elementwise_functions() -> list[str]:
    """Every numpy function of one float argument that the feature code calls, found in its source."""
    names = set()
    for path in FEATURES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
                function = getattr(np, node.attr)
                if isinstance(function, np.ufunc) and function.nin == 1 and any(t[0] == "d" for t in function.types):
                    names.add(node.attr)
    return sorted(names)


def test_the_functions_are_found() -> None:
    assert {"log1p", "expm1", "exp", "log", "sin", "cos", "arcsin", "sqrt"} <= set(elementwise_functions())


@pytest.mark.parametrize("name", [*elementwise_functions(), "to float16", "to float32"])
def test_bits_do_not_depend_on_length_or_place(name: str) -> None:
    casts: dict[str, Any] = {
        "to float16": lambda x: np.asarray(x).astype(np.float16),
        "to float32": lambda x: np.asarray(x).astype(np.float32),
    }
    function = casts.get(name) or getattr(np, name)
    draw = np.random.default_rng(7)
    largest = {"arcsin": 1.0, "exp": 28.0, "expm1": 28.0}.get(name, 6e4)
    values = np.concatenate((draw.uniform(0.001, 1, 600), draw.lognormal(3, 4, 400) % largest + 1e-9))
    values[draw.integers(0, len(values), 40)] = np.nan
    whole = function(values)
    alone = np.array([function(values[i : i + 1])[0] for i in range(len(values))], whole.dtype)
    assert whole.tobytes() == alone.tobytes()
    for start in (1, 2, 3, 5, 8):
        for length in (1, 2, 7, 15, 64, 333):
            part = slice(start, start + length)
            assert function(values[part]).tobytes() == whole[part].tobytes(), (start, length)
    assert function(values[::3]).tobytes() == whole[::3].tobytes()
    assert function(values.reshape(250, 4)[:, 1]).tobytes() == whole.reshape(250, 4)[:, 1].tobytes()


def test_the_norm_takes_out_what_it_took_in_for_any_amount() -> None:
    """The fold rounds 1000 ln(1 + x) over an array, a label over one number: they must agree."""
    draw = np.random.default_rng(8)
    minor = np.concatenate((draw.integers(0, 10**14, 3000), draw.integers(0, 10**5, 3000)))
    together = np.rint(norm.LOG_SCALE * np.log1p(minor / 100.0))
    assert together.tolist() == [float(np.rint(norm.LOG_SCALE * np.log1p(int(m) / 100.0))) for m in minor]
