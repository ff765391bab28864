"""One timeline of simulated payments, genuine and fraudulent, with labels that arrive late.

The timeline is made in days. Day n follows from the seed and n alone, so any stretch of it can be made
without what came before, and the same stretch is always the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TypeVar

import numpy as np

from stream.domains.payments_schema import Label, Transaction
from stream.features.batch import F64, I64
from stream.history.batch import NEVER_MS, HistoryBatch, Text, WireContract, concatenate
from stream.simulate.payments import (
    DAY_MS,
    ENTRY_MODES,
    Payments,
    Population,
    Trips,
    genuine_day,
    join,
)
from stream.simulate.population import (
    CATEGORIES,
    NONE,
    PLACES,
    USD_PER_UNIT,
    make_customers,
    make_merchants,
)
from stream.simulate.scenarios import (
    COMPROMISED_SHARE,
    COMPROMISED_TERMINAL,
    LONGEST_DAYS,
    SCENARIOS,
    Compromise,
    compromise,
)

CONTRACT = WireContract.of(Transaction, Label)

LABEL_MEDIAN_DAYS = 2.0
LABEL_SIGMA = 0.8
LABEL_MATURITY_DAYS = 7
"""A fraud that nobody reported within so many days never is, and then counts as genuine."""

NEVER_REPORTED = 0.06
_DRIFT_PER_30_DAYS = 0.01
_EPOCH_WEEKDAY = 3  # 1 January 1970 was a Thursday

_POPULATION, _TERMINALS, _WEEK, _GENUINE, _FRAUD, _LABELS, _OPENING = range(7)
"""What a random generator is for: part of its seed, so that no two draw the same numbers."""

_Made = TypeVar("_Made")


class Simulation:
    """A population and its timeline from midnight (UTC) of the day of `start_ms` on, without end.

    `accounts` customers make about three payments a day each; `fraud_rate` is the expected share of
    fraudulent payments. The truth is in `HistoryBatch.scenario`; `fraud` and `known_ms` are what labels
    will say and when: 6 % of frauds, and those not reported within LABEL_MATURITY_DAYS, look genuine.
    Amounts rise by 1 % in 30 days, and card testing and takeovers slowly take a larger share.

    `mix`: scenario -> its share of the fraudulent payments, relative to the others; what it does not name
    does not happen. None: the weights of SCENARIOS. ValueError for a name that is none of theirs.
    """

    def __init__(
        self,
        *,
        accounts: int = 2_000,
        merchants: int | None = None,
        seed: int = 7,
        fraud_rate: float = 0.01,
        start_ms: int = 1_767_225_600_000,
        mix: Mapping[str, float] | None = None,
    ) -> None:
        if accounts < 1 or not 0 <= fraud_rate < 1:
            raise ValueError("accounts must be at least 1, fraud_rate at least 0 and below 1")
        self._weights = _weights_of(mix)
        self.seed = seed
        self.fraud_rate = fraud_rate
        self.start_ms = start_ms // DAY_MS * DAY_MS
        rng = self._rng(_POPULATION)
        shops = make_merchants(merchants if merchants is not None else max(200, accounts // 8), rng)
        self.population = Population(make_customers(accounts, shops, rng), shops)
        self._plans: dict[int, tuple[Payments | None, list[Compromise]]] = {}
        self._trips: dict[int, Trips] = {}

    @staticmethod
    def start_before(now_ms: int, days: float) -> int:
        """The latest Monday, 00:00 UTC, that leaves at least `days` days until `now_ms`.

        Timelines that start on Mondays have the same days of week, whichever Monday it is.
        """
        day = int(now_ms - days * DAY_MS) // DAY_MS
        return (day - (day + _EPOCH_WEEKDAY) % 7) * DAY_MS

    @property
    def events_per_day(self) -> float:
        """Expected payments in a day, frauds included."""
        return float(self.population.customers.rate_per_day.sum()) / (1 - self.fraud_rate)

    def day(self, number: int) -> HistoryBatch:
        """Day `number` (0 is the first) in order of time."""
        day_ms = self.start_ms + number * DAY_MS
        weekday = (day_ms // DAY_MS + _EPOCH_WEEKDAY) % 7
        trips = _remembered(self._trips, number // 7, self._week, keep=2)
        rng = self._rng(_GENUINE, number)
        parts = [genuine_day(self.population, trips, day_ms, weekday, rng)]
        for planned in range(number - LONGEST_DAYS, number + 1):
            frauds, compromises = _remembered(self._plans, planned, self._plan, keep=LONGEST_DAYS + 2)
            self._strike(parts[0], compromises, rng)
            if frauds is not None:
                parts.append(frauds.take((frauds.time_ms >= day_ms) & (frauds.time_ms < day_ms + DAY_MS)))
        payments = join(parts)
        payments = payments.take(np.argsort(payments.time_ms, kind="stable"))
        return self._batch(payments, f"{number:05d}-", self._rng(_LABELS, number))

    def days(self, from_ms: int) -> Iterator[HistoryBatch]:
        """The timeline from a moment on, in batches of at most a day, without end."""
        number = (from_ms - self.start_ms) // DAY_MS
        first = self.day(number)
        yield first.take(slice(int(np.searchsorted(first.time_ms, from_ms)), None))
        while True:
            number += 1
            yield self.day(number)

    def generate(
        self, events: int | None = None, *, from_ms: int | None = None, until_ms: int | None = None
    ) -> HistoryBatch:
        """A stretch of the timeline as one batch: `events` of them, or all before `until_ms`, or what ends first."""
        if events is None and until_ms is None:
            raise ValueError("say how many events, or until when")
        start = self.start_ms if from_ms is None else from_ms
        wanted = events if events is not None else NEVER_MS
        parts: list[HistoryBatch] = []
        for batch in self.days(start):
            end = len(batch) if until_ms is None else int(np.searchsorted(batch.time_ms, until_ms))
            parts.append(batch.take(slice(0, min(end, wanted))))
            wanted -= len(parts[-1])
            next_day_ms = (start // DAY_MS + len(parts)) * DAY_MS
            if wanted == 0 or (until_ms is not None and next_day_ms >= until_ms):
                break
        return concatenate(parts)

    def opening(self, from_ms: int) -> HistoryBatch:
        """A stolen card, a takeover and a card testing that begin within a quarter of an hour, in order of time."""
        rng = self._rng(_OPENING)
        parts = []
        for code, scenario in enumerate(SCENARIOS):
            if scenario.name in ("stolen_card", "account_takeover", "card_testing") and scenario.episode is not None:
                start = from_ms + int(rng.integers(0, 15 * 60_000))
                parts.append(_named(scenario.episode(self.population, rng, start), code))
        payments = join(parts)
        payments = payments.take(np.argsort(payments.time_ms, kind="stable"))
        return self._batch(payments, "opening-", rng)

    def _rng(self, purpose: int, number: int = 0) -> np.random.Generator:
        # Days before the first have negative numbers, seeds have not.
        return np.random.default_rng((self.seed, purpose, number + 1_000_000))

    def _week(self, week: int) -> Trips:
        return Trips.of_week(self.population, self._rng(_WEEK, week))

    def _drift(self, day: int) -> float:
        """Months since the start, from 0 on."""
        return max(0, day) / 30

    def _plan(self, day: int) -> tuple[Payments | None, list[Compromise]]:
        """The episodes that begin on a day."""
        rng = self._rng(_FRAUD, day)
        day_ms = self.start_ms + day * DAY_MS
        wanted = self.fraud_rate * self.events_per_day
        growing = {"card_testing", "account_takeover"}
        growth = np.array([1 + 0.02 * self._drift(day) * (scenario.name in growing) for scenario in SCENARIOS])
        weights = self._weights * growth / (self._weights * growth).sum()
        parts: list[Payments] = []
        for code, scenario in enumerate(SCENARIOS):
            if scenario.episode is None:
                continue
            starts = day_ms + rng.integers(0, DAY_MS, rng.poisson(wanted * weights[code] / scenario.size))
            parts += [_named(scenario.episode(self.population, rng, int(start)), code) for start in starts]
        terminals, per_day = self._terminals
        terminal_frauds = wanted * float(weights[COMPROMISED_TERMINAL])
        return (join(parts) if parts else None), compromise(terminals, per_day, terminal_frauds, rng, day_ms)

    @cached_property
    def _terminals(self) -> tuple[I64, F64]:
        """Terminals in use, and how many payments each sees in a day: counted on one day that is not kept."""
        rng = self._rng(_TERMINALS)
        trips = Trips.of_week(self.population, rng)
        sample = genuine_day(self.population, trips, day_ms=0, weekday=_EPOCH_WEEKDAY, rng=rng)
        terminals, counts = np.unique(sample.terminal[sample.terminal != NONE], return_counts=True)
        return terminals, counts.astype(np.float64)

    def _strike(self, genuine: Payments, compromises: list[Compromise], rng: np.random.Generator) -> None:
        """Turns payments at compromised terminals into fraud, in place."""
        for terminal, from_ms, to_ms in compromises:
            at = (genuine.terminal == terminal) & (genuine.time_ms >= from_ms) & (genuine.time_ms < to_ms)
            struck = np.flatnonzero(at)
            struck = struck[rng.random(len(struck)) < COMPROMISED_SHARE]
            genuine.scenario[struck] = COMPROMISED_TERMINAL
            genuine.amount_usd[struck] *= rng.lognormal(0.3, 0.4, len(struck))

    def _batch(self, payments: Payments, name: str, rng: np.random.Generator) -> HistoryBatch:
        shops, size = self.population.merchants, len(payments)
        online = self.population.is_online(payments.merchant)
        home = self.population.customers.place[payments.account]
        currency = _CURRENCY_OF_PLACE[np.where(online, home, payments.place)]
        months = (payments.time_ms - self.start_ms) / (30 * DAY_MS)
        amount = payments.amount_usd * np.exp(_DRIFT_PER_30_DAYS * np.maximum(months, 0.0)) / _USD_PER_UNIT[currency]
        category = shops.category[payments.merchant]
        fraud, known_ms = _labels(payments, rng)
        return HistoryBatch(
            contract=CONTRACT,
            time_ms=payments.time_ms,
            text={
                "event_id": np.array([f"pay-{self.seed}-{name}{row:06d}" for row in range(size)], dtype=object),
                "account_id": self._names.account[payments.account],
                "currency": _CURRENCIES[currency],
                "merchant_id": self._names.merchant[payments.merchant],
                "mcc": _MCC[category],
                "country": _COUNTRY_OF_PLACE[payments.place],
                "channel": _CHANNEL[category],
                "terminal_id": self._names.terminal[payments.terminal],
                "device_id": self._names.device[payments.device],
                "ip": self._names.ip[payments.ip],
                "entry_mode": _ENTRY_MODES[payments.entry],
                "card_id": self._names.card[2 * payments.account + payments.second_card],
            },
            numbers={
                "amount": np.maximum(np.round(amount, 2), 0.01),
                "latitude": np.where(online, np.nan, shops.latitude[payments.merchant]),
                "longitude": np.where(online, np.nan, shops.longitude[payments.merchant]),
            },
            fraud=fraud,
            known_ms=known_ms,
            label_source="chargeback",
            scenario=_SCENARIO_NAMES[payments.scenario],
        )

    @cached_property
    def _names(self) -> _Names:
        return _Names(self.population)


def _weights_of(mix: Mapping[str, float] | None) -> F64:
    """Weight by place in SCENARIOS."""
    names = [scenario.name for scenario in SCENARIOS]
    given = {scenario.name: scenario.weight for scenario in SCENARIOS} if mix is None else mix
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"no scenario {unknown[0]!r}; there are: {', '.join(names)}")
    weights = np.array([float(given.get(name, 0.0)) for name in names])
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("the scenarios' weights must not be negative, and one must be above 0")
    return weights


class _Names:
    """Identifiers by number. The last one of each is None, so that NONE finds it."""

    def __init__(self, population: Population) -> None:
        accounts = len(population.customers)
        shops = population.merchants
        self.account = _names("acc-{:06d}", accounts)
        self.card = _names("card-{:07d}", 2 * accounts)
        self.merchant = _names("mer-{:05d}", len(shops))
        self.terminal = _names("ter-{:06d}", int(shops.terminals.sum()))
        self.device = _names("dev-{:07d}", population.devices)
        addresses = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(population.ips)]
        self.ip: Text = np.array([*addresses, None], dtype=object)


def _names(pattern: str, count: int) -> Text:
    return np.array([*(pattern.format(number) for number in range(count)), None], dtype=object)


def _labels(payments: Payments, rng: np.random.Generator) -> tuple[np.ndarray[tuple[int], np.dtype[np.int8]], I64]:
    """What the labels will say, and when it is known."""
    size = len(payments)
    days = rng.lognormal(np.log(LABEL_MEDIAN_DAYS), LABEL_SIGMA, size)
    reported = (rng.random(size) >= NEVER_REPORTED) & (days < LABEL_MATURITY_DAYS)
    fraud = (payments.scenario != NONE) & reported
    delay_ms = np.where(fraud, days * DAY_MS, LABEL_MATURITY_DAYS * DAY_MS).astype(np.int64)
    return fraud.astype(np.int8), payments.time_ms + delay_ms


def _named(payments: Payments, code: int) -> Payments:
    payments.scenario[:] = code
    return payments


def _remembered(cache: dict[int, _Made], number: int, make: Callable[[int], _Made], keep: int) -> _Made:
    """`make(number)`, made once while it is among the last `keep` asked for."""
    if number not in cache:
        while len(cache) >= keep:
            del cache[next(iter(cache))]
        cache[number] = make(number)
    return cache[number]


_CURRENCIES: Text = np.array(sorted(USD_PER_UNIT), dtype=object)
_USD_PER_UNIT = np.array([USD_PER_UNIT[currency] for currency in _CURRENCIES])
_CURRENCY_OF_PLACE = np.array([sorted(USD_PER_UNIT).index(place.currency) for place in PLACES])
_COUNTRY_OF_PLACE: Text = np.array([place.country for place in PLACES], dtype=object)
_MCC: Text = np.array([category.mcc for category in CATEGORIES], dtype=object)
_CHANNEL: Text = np.array([category.channel for category in CATEGORIES], dtype=object)
_ENTRY_MODES: Text = np.array(ENTRY_MODES, dtype=object)
_SCENARIO_NAMES: Text = np.array([*(scenario.name for scenario in SCENARIOS), None], dtype=object)
