"""The frauds: each function makes the payments of one episode that begins at a given moment.

A compromised terminal is different: it turns payments that customers make anyway into fraud.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stream.features.batch import F64, I64
from stream.simulate.payments import (
    CHIP,
    CONTACTLESS,
    DAY_MS,
    HOUR_MS,
    MAGSTRIPE,
    TYPED,
    Payments,
    Population,
)
from stream.simulate.population import NONE

Episode = Callable[[Population, np.random.Generator, int], Payments]


class Scenario(NamedTuple):
    """A kind of fraud. `weight`: its share of the fraudulent payments; `size`: payments per episode, about."""

    name: str
    weight: float
    size: float
    episode: Episode | None


def stolen_card(population: Population, rng: np.random.Generator, from_ms: int) -> Payments:
    """A spree: 6 to 15 purchases at counters of one city within hours, above the owner's usual."""
    size = int(rng.integers(6, 16))
    account = np.full(size, rng.integers(len(population.customers)))
    home = population.customers.place[account]
    elsewhere = np.full(size, rng.integers(len(population.merchants.place_start) - 1))
    merchant = population.merchants.local(home if rng.random() < 0.7 else elsewhere, rng)
    amount = population.usual_price(account, merchant, rng) * rng.uniform(1.5, 5.0, size)
    entry = rng.choice([CONTACTLESS, MAGSTRIPE], size, p=[0.5, 0.5])
    times = _spread(rng, from_ms, size, rng.uniform(1, 4))
    return _payments(population, rng, times, account, merchant, amount=amount, entry=entry)


def account_takeover(population: Population, rng: np.random.Generator, from_ms: int) -> Payments:
    """A stranger's device, address and country: 4 to 10 large purchases online within half a day."""
    size = int(rng.integers(4, 11))
    account = np.full(size, rng.integers(len(population.customers)))
    merchant = population.merchants.online(size, rng)
    amount = population.usual_price(account, merchant, rng) * rng.uniform(2.0, 8.0, size)
    place = int(rng.integers(len(population.merchants.place_start) - 1))
    times = _spread(rng, from_ms, size, rng.uniform(2, 12))
    device, ip = population.strange_device(rng), population.strange_ip(rng)
    stranger = {"device": device, "ip": ip, "place": place}
    return _payments(population, rng, times, account, merchant, amount=amount, entry=np.full(size, TYPED), **stranger)


def card_testing(population: Population, rng: np.random.Generator, from_ms: int) -> Payments:
    """A robot tries stolen cards: dozens of tiny payments at one online merchant within minutes."""
    cards = rng.integers(0, len(population.customers), int(rng.integers(8, 20)))
    account = rng.permutation(np.repeat(cards, rng.integers(2, 7, len(cards))))
    size = len(account)
    merchant = np.repeat(population.merchants.online(1, rng), size)
    amount = rng.uniform(0.5, 3.0, size)
    times = _spread(rng, from_ms, size, rng.uniform(0.15, 0.7))
    device, ip = population.strange_device(rng), population.strange_ip(rng)
    robot = {"device": device, "ip": ip}
    return _payments(population, rng, times, account, merchant, amount=amount, entry=np.full(size, TYPED), **robot)


def large_amount(population: Population, rng: np.random.Generator, from_ms: int) -> Payments:
    """One purchase, 10 to 40 times the usual."""
    account = rng.integers(0, len(population.customers), 1)
    merchant = population.merchants.local(population.customers.place[account], rng)
    if rng.random() < 0.5:
        merchant = population.merchants.online(1, rng)
    amount = population.usual_price(account, merchant, rng) * rng.uniform(10.0, 40.0, 1)
    entry = np.where(population.is_online(merchant), TYPED, CHIP)
    return _payments(population, rng, np.array([from_ms]), account, merchant, amount=amount, entry=entry)


def slow_mule(population: Population, rng: np.random.Generator, from_ms: int) -> Payments:
    """An account that passes money on: for weeks, every day or two, an amount just below a round limit."""
    days = int(rng.integers(12, 28))
    size = int(rng.integers(days // 2, days + 1))
    account = np.full(size, rng.integers(len(population.customers)))
    few = population.merchants.online(2, rng)
    limit = float(rng.choice([200.0, 500.0, 1000.0]))
    amount = limit * rng.uniform(0.90, 0.995, size)
    times = _spread(rng, from_ms, size, days * 24)
    merchant = rng.choice(few, size)
    return _payments(population, rng, times, account, merchant, amount=amount, entry=np.full(size, TYPED))


SCENARIOS = (
    Scenario("compromised_terminal", 0.20, 1.0, None),
    Scenario("stolen_card", 0.25, 10.5, stolen_card),
    Scenario("account_takeover", 0.20, 7.0, account_takeover),
    Scenario("card_testing", 0.20, 54.0, card_testing),
    Scenario("large_amount", 0.05, 1.0, large_amount),
    Scenario("slow_mule", 0.10, 14.5, slow_mule),
)
COMPROMISED_TERMINAL = 0
LONGEST_DAYS = 28
"""No episode lasts longer."""

COMPROMISED_SHARE = 0.7
"""Share of a compromised terminal's payments that are fraud."""


class Compromise(NamedTuple):
    """A terminal that thieves control from one moment to another."""

    terminal: int
    from_ms: int
    to_ms: int


def compromise(terminals: I64, per_day: F64, wanted: float, rng: np.random.Generator, day_ms: int) -> list[Compromise]:
    """Terminals (N,) that fall on one day, so many that `wanted` frauds are expected of them in all.

    `per_day` (N,): the payments that each sees in a day. The last one is drawn with the chance that is left.
    """
    found: list[Compromise] = []
    if len(terminals) == 0:
        return found
    while wanted > 0:
        chosen = int(rng.integers(len(terminals)))
        days = float(rng.uniform(7, 21))
        expected = per_day[chosen] * days * COMPROMISED_SHARE
        start = day_ms + int(rng.integers(DAY_MS))
        if rng.random() * expected <= wanted:
            found.append(Compromise(int(terminals[chosen]), start, start + int(days * DAY_MS)))
        wanted -= expected
    return found


def _spread(rng: np.random.Generator, from_ms: int, size: int, hours: float) -> I64:
    """The first at once, the others at random moments within so many hours, in order."""
    later = np.sort(rng.uniform(0.0, hours * HOUR_MS, size - 1)).astype(np.int64)
    return from_ms + np.concatenate([[0], later])


def _payments(
    population: Population,
    rng: np.random.Generator,
    time_ms: I64,
    account: I64,
    merchant: I64,
    *,
    amount: F64,
    entry: I64,
    device: int = NONE,
    ip: int = NONE,
    place: int = NONE,
) -> Payments:
    """An episode's columns. Online, the owner's own device and address unless others are given."""
    size = len(time_ms)
    online = population.is_online(merchant)
    return Payments(
        time_ms=time_ms,
        account=account,
        merchant=merchant,
        terminal=population.merchants.terminal(merchant, rng),
        device=np.where(online, 2 * account if device == NONE else device, NONE),
        ip=np.where(online, account if ip == NONE else ip, NONE),
        second_card=np.zeros(size, np.bool_),
        entry=entry,
        amount_usd=amount,
        place=population.merchants.place[merchant] if place == NONE else np.full(size, place),
        scenario=np.full(size, NONE),
    )
