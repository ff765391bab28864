"""The simulator: the contract it writes, that it repeats itself, what its frauds look like, and its pace."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from stream.clock import ManualClock
from stream.domains.payments_schema import Label, Transaction
from stream.features.money import Rates
from stream.history.batch import NEVER_MS, HistoryBatch, concatenate
from stream.simulate.live import LiveTraffic, Message
from stream.simulate.payments import DAY_MS
from stream.simulate.population import USD_PER_UNIT
from stream.simulate.scenarios import SCENARIOS
from stream.simulate.simulation import LABEL_MATURITY_DAYS, Simulation
from tests.unit.test_money import EXAMPLE as EXAMPLE_RATES

MONDAY_MS = 1_767_571_200_000  # 2026-01-05


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation(accounts=400, seed=11, fraud_rate=0.03, start_ms=MONDAY_MS)


@pytest.fixture(scope="module")
def history(simulation: Simulation) -> HistoryBatch:
    return simulation.generate(until_ms=MONDAY_MS + 40 * DAY_MS)


def same(one: HistoryBatch, other: HistoryBatch) -> bool:
    return one.events_json() == other.events_json() and one.labels() == other.labels()


def of_scenario(history: HistoryBatch, name: str) -> HistoryBatch:
    assert history.scenario is not None
    return history.take(np.flatnonzero(history.scenario == name))


def test_every_event_and_label_is_what_the_contract_takes(history: HistoryBatch) -> None:
    some = history.take(slice(0, 3_000))
    TypeAdapter(list[Transaction]).validate_json(b"[" + b",".join(some.events_json()) + b"]")
    TypeAdapter(list[Label]).validate_json(json.dumps(some.labels()))
    assert b"scenario" not in b"".join(some.events_json())


def test_events_are_in_order_and_have_ids_of_their_own(history: HistoryBatch) -> None:
    assert (np.diff(history.time_ms) >= 0).all()
    assert len(set(history.text["event_id"])) == len(history)
    assert len(set(history.text["account_id"])) > 390


def test_the_same_seed_gives_the_same_bytes(history: HistoryBatch) -> None:
    again = Simulation(accounts=400, seed=11, fraud_rate=0.03, start_ms=MONDAY_MS).generate(2_000)
    assert same(again, history.take(slice(0, 2_000)))
    other = Simulation(accounts=400, seed=12, fraud_rate=0.03, start_ms=MONDAY_MS).generate(2_000)
    assert not same(other, again)


def test_a_stretch_does_not_depend_on_what_was_made_before(simulation: Simulation, history: HistoryBatch) -> None:
    fresh = Simulation(accounts=400, seed=11, fraud_rate=0.03, start_ms=MONDAY_MS)
    from_ms = MONDAY_MS + 31 * DAY_MS + 12_345_678
    late = fresh.generate(500, from_ms=from_ms)
    first = int(np.searchsorted(history.time_ms, from_ms))
    assert same(late, history.take(slice(first, first + 500)))
    cut = concatenate([simulation.generate(until_ms=from_ms), simulation.generate(300, from_ms=from_ms)])
    assert same(cut, history.take(slice(0, first + 300)))


def test_a_timeline_moved_by_weeks_is_the_same_but_for_the_dates() -> None:
    early, late = (
        Simulation(accounts=50, seed=2, start_ms=MONDAY_MS + weeks * 7 * DAY_MS).generate(400) for weeks in (0, 5)
    )
    assert (late.time_ms - early.time_ms == 35 * DAY_MS).all()
    assert late.numbers["amount"].tolist() == early.numbers["amount"].tolist()
    assert late.fraud.tolist() == early.fraud.tolist()


def test_start_before_is_a_monday_that_leaves_the_days() -> None:
    for now_ms in range(MONDAY_MS, MONDAY_MS + 9 * DAY_MS, DAY_MS // 3):
        start_ms = Simulation.start_before(now_ms, 30)
        assert (start_ms - MONDAY_MS) % (7 * DAY_MS) == 0
        assert 30 * DAY_MS <= now_ms - start_ms < 37 * DAY_MS


def test_the_expected_number_of_events_and_frauds(simulation: Simulation, history: HistoryBatch) -> None:
    assert len(history) == pytest.approx(40 * simulation.events_per_day, rel=0.05)
    assert history.scenario is not None
    truth = history.scenario != np.array(None)
    assert truth.mean() == pytest.approx(0.03, rel=0.3)
    shares = Counter(history.scenario[truth].tolist())
    assert set(shares) == {scenario.name for scenario in SCENARIOS}
    for scenario in SCENARIOS:
        assert shares[scenario.name] / truth.sum() == pytest.approx(scenario.weight, abs=0.12)


def test_scenarios_can_be_mixed() -> None:
    mixed = Simulation(accounts=400, seed=5, fraud_rate=0.05, mix={"stolen_card": 3, "large_amount": 1}).generate(
        30_000
    )
    assert mixed.scenario is not None
    shares = Counter(name for name in mixed.scenario.tolist() if name is not None)
    assert set(shares) == {"stolen_card", "large_amount"}
    assert shares["stolen_card"] / shares.total() == pytest.approx(0.75, abs=0.1)
    for wrong, words in (({"arson": 1}, "no scenario 'arson'"), ({}, "above 0"), ({"slow_mule": -1}, "negative")):
        with pytest.raises(ValueError, match=words):
            Simulation(mix=wrong)


def test_no_frauds_when_none_are_wanted() -> None:
    quiet = Simulation(accounts=30, seed=1, fraud_rate=0.0).generate(500)
    assert quiet.fraud.sum() == 0
    assert len(quiet) == 500


def test_labels_arrive_late_and_some_never(history: HistoryBatch) -> None:
    assert history.scenario is not None
    truth = history.scenario != np.array(None)
    assert not history.fraud[~truth].any()
    reported = history.fraud[truth] == 1
    assert 0.75 < reported.mean() < 0.97
    delay_days = (history.known_ms - history.time_ms) / DAY_MS
    assert (delay_days > 0).all()
    assert np.median(delay_days[history.fraud == 1]) == pytest.approx(2.0, rel=0.2)
    assert (delay_days[history.fraud == 0] == LABEL_MATURITY_DAYS).all()


def test_customers_have_habits(history: HistoryBatch) -> None:
    assert history.scenario is not None
    genuine = history.take(np.flatnonzero(history.scenario == np.array(None)))
    by_account: dict[str, list[int]] = {}
    for row, account in enumerate(genuine.text["account_id"]):
        by_account.setdefault(account, []).append(row)
    busy = [rows for rows in by_account.values() if len(rows) > 60]
    favourite = [Counter(genuine.text["merchant_id"][rows]).most_common(1)[0][1] / len(rows) for rows in busy]
    assert np.median(favourite) > 0.1
    level = np.log(genuine.numbers["amount"])
    assert np.std([level[rows].mean() for rows in busy]) > 0.2
    counters = genuine.text["channel"] != "ecommerce"
    assert np.isnan(genuine.numbers["latitude"][~counters]).all()
    assert not np.isnan(genuine.numbers["latitude"][counters]).any()
    assert {value is None for value in genuine.text["device_id"][counters]} == {True}
    assert {value is None for value in genuine.text["terminal_id"][counters]} == {False}


def test_what_the_frauds_look_like(history: HistoryBatch) -> None:
    testing = of_scenario(history, "card_testing")
    usd = Rates.load(EXAMPLE_RATES).to_minor(testing.numbers["amount"], testing.text["currency"].tolist())
    assert np.quantile(usd, 0.95) <= 350
    assert max(Counter(testing.text["merchant_id"]).values()) >= 16
    takeover = of_scenario(history, "account_takeover")
    assert set(takeover.text["channel"]) == {"ecommerce"}
    strangers = set(takeover.text["device_id"])
    assert history.scenario is not None
    genuine = history.take(np.flatnonzero(history.scenario == np.array(None)))
    assert not strangers & set(genuine.text["device_id"])
    terminals = of_scenario(history, "compromised_terminal")
    assert None not in set(terminals.text["terminal_id"])
    assert len(set(terminals.text["account_id"])) > len(set(terminals.text["terminal_id"]))
    mule = of_scenario(history, "slow_mule")
    spans = [np.ptp(mule.time_ms[mule.text["account_id"] == account]) for account in set(mule.text["account_id"])]
    assert max(spans) > 7 * DAY_MS


def test_prices_rise_with_time() -> None:
    quiet = Simulation(accounts=100, seed=4, fraud_rate=0.0, start_ms=MONDAY_MS)
    early = quiet.generate(20_000).numbers["amount"]
    late = quiet.generate(20_000, from_ms=MONDAY_MS + 700 * DAY_MS).numbers["amount"]
    assert np.median(late) / np.median(early) == pytest.approx(1.01 ** (700 / 30), rel=0.1)


def test_the_local_amounts_fit_the_example_rates() -> None:
    rates = yaml.safe_load(EXAMPLE_RATES.read_text())["rates"]
    assert {currency: rates.get(currency, 1.0) for currency in USD_PER_UNIT} == USD_PER_UNIT


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="accounts"):
        Simulation(accounts=0)
    with pytest.raises(ValueError, match="fraud_rate"):
        Simulation(fraud_rate=1.0)
    with pytest.raises(ValueError, match="how many"):
        Simulation().generate()
    with pytest.raises(ValueError, match="rate_per_s"):
        LiveTraffic(Simulation(accounts=10), from_ms=MONDAY_MS, rate_per_s=0, clock=ManualClock())


def traffic(simulation: Simulation, clock: ManualClock, **options: float) -> LiveTraffic:
    return LiveTraffic(simulation, from_ms=MONDAY_MS + 20 * DAY_MS, rate_per_s=100, clock=clock, seed=1, **options)


def test_live_traffic_continues_the_history(simulation: Simulation, history: HistoryBatch) -> None:
    messages = traffic(simulation, ManualClock(), duplicates=0, malformed=0, opening=False).take(3_000)
    events = [message.value for message in messages if message.kind == "event"]
    first = int(np.searchsorted(history.time_ms, MONDAY_MS + 20 * DAY_MS))
    assert events == history.take(slice(first, first + len(events))).events_json()
    labels = [json.loads(m.value)["event_id"] for m in messages if m.kind == "label" and m.value is not None]
    last_ms = messages[-1].event_ms
    known = (history.known_ms >= MONDAY_MS + 20 * DAY_MS) & (history.known_ms <= last_ms) & (history.fraud == 1)
    assert sorted(labels) == sorted(history.text["event_id"][known].tolist())
    assert len(labels) > 0


def test_live_traffic_holds_its_rate(simulation: Simulation) -> None:
    clock = ManualClock(MONDAY_MS + 60 * DAY_MS)
    live = traffic(simulation, clock)
    counted = []
    for _ in range(10):
        counted.append(sum(message.topic == "transactions" for message in live.due()))
        clock.advance_ms(250)
    assert counted[0] <= 1
    assert sum(counted) == pytest.approx(225, abs=3)
    clock.advance_ms(60_000)
    assert len(live.due(limit=50)) == 50


def test_no_event_comes_before_its_own_time(simulation: Simulation) -> None:
    clock = ManualClock(MONDAY_MS + 20 * DAY_MS)
    live = traffic(simulation, clock)
    sent: list[Message] = []
    for _ in range(200):
        sent += live.due()
        assert all(message.event_ms <= clock.now_ms() for message in sent[-5:])
        clock.advance_ms(60_000)
    assert len([m for m in sent if m.kind == "event"]) == pytest.approx(
        np.searchsorted(np.array([m.event_ms for m in traffic(simulation, ManualClock()).take(3_000)]), clock.now_ms()),
        rel=0.05,
    )


def test_duplicates_repeat_recent_messages_and_malformed_ones_are_refused(simulation: Simulation) -> None:
    messages = traffic(simulation, ManualClock(), duplicates=0.1, malformed=0.1).take(4_000)
    kinds = Counter(message.kind for message in messages)
    assert kinds["duplicate"] == pytest.approx(0.1 * kinds["event"], rel=0.25)
    assert kinds["malformed"] == pytest.approx(0.1 * kinds["event"], rel=0.25)
    events: list[bytes | None] = []
    adapter = TypeAdapter(Transaction)
    for message in messages:
        if message.kind == "event":
            events.append(message.value)
            assert message.value is not None
            assert json.loads(message.value)["account_id"].encode() == message.key
        elif message.kind == "duplicate":
            assert message.value in events[-32:]
        elif message.kind == "malformed" and b"2099-01-01" not in (message.value or b""):
            with pytest.raises(ValidationError):
                adapter.validate_json(message.value if message.value is not None else b"")


def test_the_opening_shows_frauds_within_ten_seconds(simulation: Simulation) -> None:
    live = LiveTraffic(
        Simulation(), from_ms=MONDAY_MS + 30 * DAY_MS, rate_per_s=200, clock=ManualClock(), duplicates=0, malformed=0
    )
    first = [message for message in live.take(2_000) if message.kind == "event"]
    opening = [message for message in first if b"-opening-" in (message.value or b"")]
    assert len(opening) > 20
    assert [m.event_ms for m in first] == sorted(m.event_ms for m in first)


def test_an_opening_late_in_the_day_goes_on_after_midnight(simulation: Simulation) -> None:
    from_ms = MONDAY_MS + 20 * DAY_MS - 600_000
    opening = simulation.opening(from_ms)
    assert opening.time_ms[-1] > from_ms + 600_000
    live = LiveTraffic(simulation, from_ms=from_ms, rate_per_s=1, clock=ManualClock(), duplicates=0, malformed=0)
    messages = [message for message in live.take(3_000) if message.kind == "event"]
    assert sum(b"-opening-" in (message.value or b"") for message in messages) == len(opening)
    assert [m.event_ms for m in messages] == sorted(m.event_ms for m in messages)


def test_the_labels_of_an_opening_come_too(simulation: Simulation) -> None:
    opening = simulation.opening(MONDAY_MS)
    assert opening.fraud.sum() > 0
    assert (opening.known_ms < NEVER_MS).all()
