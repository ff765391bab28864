"""Simulated payments as integer columns, and one day of genuine ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import F64, I64
from stream.simulate.population import CATEGORIES, FAVOURITES, NONE, PLACES, Customers, Merchants

DAY_MS = 86_400_000
HOUR_MS = 3_600_000

ENTRY_MODES = ("chip", "contactless", "magstripe", "typed", "stored")
CHIP, CONTACTLESS, MAGSTRIPE, TYPED, STORED = range(5)

WEEKDAY_FACTORS = (0.92, 0.94, 0.97, 1.0, 1.15, 1.18, 0.84)  # Monday first
_STRANGERS = 4096  # devices, and addresses, that no customer owns
_IS_CASH = np.array([category.channel == "atm" for category in CATEGORIES])
_UTC_OFFSETS = np.array([place.utc_offset_hours for place in PLACES], np.float64)
_SPREAD = np.array([category.spread for category in CATEGORIES])


@dataclass(frozen=True, slots=True)
class Payments:
    """B payments; every array is (B,). NONE in an integer column: there is none."""

    time_ms: I64
    account: I64
    merchant: I64
    terminal: I64
    device: I64
    ip: I64
    second_card: NDArray[np.bool_]
    entry: I64
    """Index into ENTRY_MODES."""
    amount_usd: F64
    place: I64
    """Where the payment says that it is: decides country."""
    scenario: I64
    """Index into scenarios.SCENARIOS; NONE for a genuine payment."""

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Payments:
        """The payments at these rows."""
        return Payments(*(getattr(self, column.name)[rows] for column in fields(self)))


def join(parts: Sequence[Payments]) -> Payments:
    """Several, at least one, one after the other."""
    return Payments(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Payments)))


@dataclass(frozen=True)
class Population:
    """Everybody who takes part. Devices and addresses are numbered: customers' first, then strangers'."""

    customers: Customers
    merchants: Merchants

    @property
    def shared_ips(self) -> int:
        """Addresses that many customers share, as mobile networks have them."""
        return len(self.customers) // 20 + 1

    @property
    def devices(self) -> int:
        return 2 * len(self.customers) + _STRANGERS

    @property
    def ips(self) -> int:
        return len(self.customers) + self.shared_ips + _STRANGERS

    def strange_device(self, rng: np.random.Generator) -> int:
        """A device that no customer owns."""
        return self.devices - 1 - int(rng.integers(_STRANGERS))

    def strange_ip(self, rng: np.random.Generator) -> int:
        """An address at which no customer lives."""
        return self.ips - 1 - int(rng.integers(_STRANGERS))

    def is_online(self, merchant: I64) -> NDArray[np.bool_]:
        return merchant >= self.merchants.online_start

    def usual_price(self, account: I64, merchant: I64, rng: np.random.Generator) -> F64:
        """US dollars (B,): the merchant's level, the customer's means, and chance."""
        merchants = self.merchants
        chance = rng.normal(0.0, 1.0, len(account)) * _SPREAD[merchants.category[merchant]]
        price: F64 = merchants.price[merchant] * self.customers.amount_scale[account] * np.exp(chance)
        return price


@dataclass(frozen=True)
class Trips:
    """Journeys of one week: customer a is at `place[a]` from `start_day[a]` to `end_day[a]`, both within."""

    place: I64
    start_day: I64
    end_day: I64

    @classmethod
    def of_week(cls, population: Population, rng: np.random.Generator) -> Trips:
        """Four customers in a hundred travel in a week, for two to five days."""
        count = len(population.customers)
        starts = rng.integers(0, 5, count)
        travels = rng.random(count) < 0.04
        return cls(
            place=rng.integers(0, len(population.merchants.place_start) - 1, count),
            start_day=np.where(travels, starts, 7),
            end_day=starts + rng.integers(1, 5, count),
        )


def genuine_day(population: Population, trips: Trips, day_ms: int, weekday: int, rng: np.random.Generator) -> Payments:
    """The genuine payments of one day (UTC) that begins at `day_ms`; `weekday` 0 is Monday. Not in order."""
    customers = population.customers
    counts = rng.poisson(customers.rate_per_day * WEEKDAY_FACTORS[weekday])
    account = np.repeat(np.arange(len(customers)), counts)
    size = len(account)
    hour = customers.hour_centre[account] + customers.hour_spread[account] * rng.normal(0.0, 1.0, size)
    hour -= _UTC_OFFSETS[customers.place[account]]
    time_ms = day_ms + (np.mod(hour, 24.0) * HOUR_MS).astype(np.int64)
    merchant = _merchants(population, trips, account, weekday, rng)
    online = population.is_online(merchant)
    amount = population.usual_price(account, merchant, rng)
    cash = _IS_CASH[population.merchants.category[merchant]]
    amount = np.where(cash, np.maximum(20.0, np.round(amount / 20.0) * 20.0), np.maximum(amount, 0.5))
    return Payments(
        time_ms=time_ms,
        account=account,
        merchant=merchant,
        terminal=population.merchants.terminal(merchant, rng),
        device=np.where(online, 2 * account + (rng.random(size) < 0.1), NONE),
        ip=np.where(online, _addresses(population, account, rng), NONE),
        second_card=customers.has_second_card[account] & (rng.random(size) < 0.3),
        entry=_entries(online, rng),
        amount_usd=amount,
        place=population.merchants.place[merchant],
        scenario=np.full(size, NONE),
    )


def _merchants(population: Population, trips: Trips, account: I64, weekday: int, rng: np.random.Generator) -> I64:
    """A favourite four times in five, otherwise another of the place; on a journey, those of that place."""
    customers, merchants = population.customers, population.merchants
    size = len(account)
    slot = np.minimum(rng.geometric(0.3, size) - 1, FAVOURITES - 1)
    online = rng.random(size) < customers.online_share[account]
    favourite = np.where(online, customers.favourite_online[account, slot], customers.favourite_local[account, slot])
    other = np.where(online, merchants.online(size, rng), merchants.local(customers.place[account], rng))
    chosen = np.where(rng.random(size) < 0.8, favourite, other)
    away = (trips.start_day[account] <= weekday) & (weekday <= trips.end_day[account]) & ~online
    return np.where(away, merchants.local(trips.place[account], rng), chosen)


def _addresses(population: Population, account: I64, rng: np.random.Generator) -> I64:
    shared = len(population.customers) + rng.integers(0, population.shared_ips, len(account))
    return np.where(rng.random(len(account)) < 0.8, account, shared)


def _entries(online: NDArray[np.bool_], rng: np.random.Generator) -> I64:
    chance = rng.random(len(online))
    at_counter = np.select([chance < 0.55, chance < 0.95], [CONTACTLESS, CHIP], MAGSTRIPE)
    return np.where(online, np.where(chance < 0.6, STORED, TYPED), at_counter)
