"""Who pays whom: customers with habits, and merchants with places, categories and terminals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import F64, I64

NONE = -1
"""In an integer column: there is none."""

FAVOURITES = 8
_ONLINE_SHARE = 0.2


class Place(NamedTuple):
    """A city. `weight`: its share of the customers, relative to the others."""

    latitude: float
    longitude: float
    country: str
    currency: str
    utc_offset_hours: int
    weight: float


class Category(NamedTuple):
    """A line of business. `price`: the usual amount in US dollars; `spread`: sigma of its logarithm."""

    mcc: str
    channel: str
    price: float
    spread: float
    weight: float


PLACES = (
    Place(40.71, -74.01, "US", "USD", -5, 10),
    Place(34.05, -118.24, "US", "USD", -8, 8),
    Place(41.88, -87.63, "US", "USD", -6, 6),
    Place(29.76, -95.37, "US", "USD", -6, 5),
    Place(33.45, -112.07, "US", "USD", -7, 4),
    Place(39.95, -75.17, "US", "USD", -5, 4),
    Place(47.61, -122.33, "US", "USD", -8, 3),
    Place(25.76, -80.19, "US", "USD", -5, 3),
    Place(39.74, -104.99, "US", "USD", -7, 3),
    Place(43.65, -79.38, "CA", "CAD", -5, 3),
    Place(45.50, -73.57, "CA", "CAD", -5, 2),
    Place(19.43, -99.13, "MX", "MXN", -6, 2),
    Place(51.51, -0.13, "GB", "GBP", 0, 5),
    Place(53.48, -2.24, "GB", "GBP", 0, 2),
    Place(48.86, 2.35, "FR", "EUR", 1, 3),
    Place(52.52, 13.40, "DE", "EUR", 1, 3),
    Place(48.14, 11.58, "DE", "EUR", 1, 2),
    Place(40.42, -3.70, "ES", "EUR", 1, 2),
    Place(45.46, 9.19, "IT", "EUR", 1, 2),
    Place(52.37, 4.90, "NL", "EUR", 1, 2),
    Place(59.33, 18.07, "SE", "SEK", 1, 1),
    Place(52.23, 21.01, "PL", "PLN", 1, 2),
)

USD_PER_UNIT = {"USD": 1.0, "CAD": 0.73, "MXN": 0.055, "GBP": 1.27, "EUR": 1.08, "SEK": 0.095, "PLN": 0.25}
"""Turns the simulated dollars into local amounts. Illustrative, and the same as examples/rates.yaml."""

CATEGORIES = (
    Category("5411", "pos", 32.0, 0.7, 20),
    Category("5812", "pos", 24.0, 0.6, 14),
    Category("5814", "pos", 9.0, 0.4, 16),
    Category("5541", "pos", 38.0, 0.4, 9),
    Category("5912", "pos", 17.0, 0.7, 6),
    Category("5311", "pos", 55.0, 0.8, 6),
    Category("4111", "pos", 3.5, 0.4, 8),
    Category("7832", "pos", 21.0, 0.4, 3),
    Category("5732", "pos", 140.0, 0.9, 2),
    Category("7011", "pos", 160.0, 0.6, 2),
    Category("6011", "atm", 90.0, 0.6, 5),
    Category("5944", "pos", 180.0, 0.9, 1),
    Category("5999", "ecommerce", 33.0, 0.9, 10),
    Category("5735", "ecommerce", 11.0, 0.3, 6),
    Category("4816", "ecommerce", 15.0, 0.5, 5),
    Category("5691", "ecommerce", 62.0, 0.7, 5),
    Category("4722", "ecommerce", 240.0, 0.8, 1),
    Category("5816", "ecommerce", 13.0, 0.6, 4),
    Category("5734", "ecommerce", 48.0, 0.9, 3),
)

_LOCAL = tuple(index for index, category in enumerate(CATEGORIES) if category.channel != "ecommerce")
_ONLINE = tuple(index for index, category in enumerate(CATEGORIES) if category.channel == "ecommerce")


@dataclass(frozen=True)
class Merchants:
    """M merchants. Local ones come first, by place, busiest first within each; then the online ones."""

    category: I64
    place: I64
    latitude: F64
    longitude: F64
    price: F64
    first_terminal: I64
    terminals: I64
    place_start: I64
    """(P + 1,): merchants of place p are [place_start[p], place_start[p + 1])."""

    def __len__(self) -> int:
        return len(self.category)

    @property
    def online_start(self) -> int:
        """Index of the first online merchant."""
        return int(self.place_start[-1])

    def local(self, place: I64, rng: np.random.Generator) -> I64:
        """A merchant in each place, the busy ones more often."""
        start = self.place_start[place]
        return start + self._rank(self.place_start[place + 1] - start, rng)

    def online(self, size: int, rng: np.random.Generator) -> I64:
        """Online merchants (size,), the busy ones more often."""
        count = np.full(size, len(self) - self.online_start)
        return self.online_start + self._rank(count, rng)

    def terminal(self, merchant: I64, rng: np.random.Generator) -> I64:
        """One of each merchant's terminals; NONE online."""
        chosen = self.first_terminal[merchant] + (rng.random(len(merchant)) * self.terminals[merchant]).astype(np.int64)
        return np.where(self.terminals[merchant] > 0, chosen, NONE)

    @staticmethod
    def _rank(count: I64, rng: np.random.Generator) -> I64:
        return (count * rng.random(len(count)) ** 2.5).astype(np.int64)


@dataclass(frozen=True)
class Customers:
    """A customers and their habits."""

    place: I64
    rate_per_day: F64
    amount_scale: F64
    hour_centre: F64
    hour_spread: F64
    online_share: F64
    favourite_local: I64
    """(A, FAVOURITES) merchants, the most visited first."""
    favourite_online: I64
    """(A, FAVOURITES)"""
    has_second_card: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.place)


def make_merchants(count: int, rng: np.random.Generator) -> Merchants:
    """About `count` merchants: at least four in each place, a fifth of all online."""
    weights = np.array([place.weight for place in PLACES])
    online = max(len(_ONLINE), int(count * _ONLINE_SHARE))
    per_place = np.maximum(4, np.round((count - online) * weights / weights.sum()).astype(np.int64))
    local = int(per_place.sum())
    place = np.concatenate([np.repeat(np.arange(len(PLACES)), per_place), rng.integers(0, len(PLACES), online)])
    category = np.concatenate([_pick(_LOCAL, local, rng), _pick(_ONLINE, online, rng)])
    terminals = np.concatenate([rng.integers(1, 7, local), np.zeros(online, np.int64)])
    median = np.array([kind.price for kind in CATEGORIES])[category]
    return Merchants(
        category=category,
        place=place,
        latitude=_coordinate(0, place, rng),
        longitude=_coordinate(1, place, rng),
        price=median * rng.lognormal(0.0, 0.3, local + online),
        first_terminal=np.concatenate([[0], np.cumsum(terminals)[:-1]]),
        terminals=terminals,
        place_start=np.concatenate([[0], np.cumsum(per_place)]),
    )


def make_customers(count: int, merchants: Merchants, rng: np.random.Generator) -> Customers:
    """Customers of every place, about three payments a day each, some far more."""
    weights = np.array([place.weight for place in PLACES])
    place = rng.choice(len(PLACES), count, p=weights / weights.sum())
    repeated = np.repeat(place, FAVOURITES)
    return Customers(
        place=place,
        rate_per_day=np.clip(rng.lognormal(np.log(2.4), 0.7, count), 0.1, 15.0),
        amount_scale=rng.lognormal(0.0, 0.4, count),
        hour_centre=rng.normal(14.5, 2.5, count),
        hour_spread=rng.uniform(2.0, 4.5, count),
        online_share=rng.beta(1.5, 4.0, count),
        favourite_local=merchants.local(repeated, rng).reshape(count, FAVOURITES),
        favourite_online=merchants.online(count * FAVOURITES, rng).reshape(count, FAVOURITES),
        has_second_card=rng.random(count) < 0.15,
    )


def _pick(kinds: tuple[int, ...], count: int, rng: np.random.Generator) -> I64:
    """Categories (count,), every one at least once, the rest by weight."""
    weights = np.array([CATEGORIES[kind].weight for kind in kinds])
    drawn = rng.choice(kinds, count, p=weights / weights.sum())
    every = min(len(kinds), count)
    drawn[rng.permutation(count)[:every]] = kinds[:every]
    return drawn


def _coordinate(axis: int, place: I64, rng: np.random.Generator) -> F64:
    """Degrees (N,): axis 0 latitude, 1 longitude, within some ten kilometres of the place's centre."""
    centre = np.array([PLACES[index][axis] for index in range(len(PLACES))], dtype=np.float64)
    return np.round(centre[place] + rng.normal(0.0, 0.12, len(place)), 5)
