"""The slow obvious twin of stream/features: one item at a time, over lists of all that ever happened.

Nothing here is vectorised, cached or forgotten, except what the declared semantics forget: an account
begins anew when idle past the horizon, it remembers its last 64 events, 64 ids and 16 verdicts, and an
entity's windows are counted in tiles of its own clock. Where an account has had more events than it
remembers, the twin gives bounds instead of a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from stream.features import operators
from stream.features.spec import Domain, window_ms
from tests.parity.naive_history import Account, Bounds, Event, Label, Outcome, Past, Shared, Value, Window, latest

REMEMBERED = 64
VERDICTS = 16
TILES = 16
DAY_MS = 86_400_000
HOUR_MS = 3_600_000


class NaiveFeatures:
    """Same inputs as FeatureState, same meaning of the outputs."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.horizon_ms = max(window_ms(window) for window in domain.windows)
        self.accounts: dict[tuple[int, str], Account] = {}
        self.shared: dict[tuple[str, int, str], Shared] = {}
        self.others: dict[tuple[str, int, str], list[Shared]] = {}
        """Other partitions' partials, as they were when they were read."""

    def event(self, event: Event) -> Outcome:
        account = self.accounts.setdefault((event.partition, event.account), Account())
        if event.event_id in account.ids[-REMEMBERED:]:
            return Outcome(duplicate=True)
        newest = account.newest
        if newest is not None and event.time_ms - newest > self.horizon_ms:
            account.begin_anew()
        moment = Moment(self, event, account)
        outcome = Outcome(duplicate=False, late=newest is not None and event.time_ms < newest)
        outcome.saturated = moment.beyond(self.horizon_ms)
        account.steps.append(moment.compute(self.domain.step, "own"))
        outcome.steps = account.steps[-self.domain.sequence_length :]
        outcome.aggregates = moment.compute(self.domain.aggregates, "all")
        account.past.append(Past(event))
        account.ids.append(event.event_id)
        for kind, identity in event.entities.items():
            if identity is not None:
                shared = self.shared.setdefault((kind, event.partition, identity), Shared())
                clock = event.time_ms if shared.clock is None else max(shared.clock, event.time_ms)
                shared.events.append((clock, max(event.amount_minor, 0)))
        return outcome

    def label(self, label: Label) -> int | None:
        """+1 a fraud became known, -1 one was taken back, 0 found genuine, None nothing new."""
        account = self.accounts.setdefault((label.partition, label.account), Account())
        earlier = [fraud for event_id, fraud in account.verdicts[-VERDICTS:] if event_id == label.event_id]
        if earlier and earlier[-1] == label.fraud:
            return None
        account.verdicts.append((label.event_id, label.fraud))
        change = int(label.fraud) - int(bool(earlier and earlier[-1]))
        newest = max((past.event.time_ms for past in account.past), default=None)
        if newest is not None and label.known_ms - newest > self.horizon_ms:
            account.begin_anew()
        account.frauds += change
        if change > 0:
            account.last_fraud = latest(account.last_fraud, label.known_ms)
        meant = [past for past in account.past if past.event.event_id == label.event_id]
        if meant:  # two only when an id came again after it was forgotten
            meant[-1].fraud = label.fraud
        for kind, identity in label.entities.items():
            if identity is not None:
                shared = self.shared.setdefault((kind, label.partition, identity), Shared())
                if shared.clock is not None:
                    shared.changes.append((shared.clock, change))
                if change > 0:
                    shared.last_fraud = latest(shared.last_fraud, label.known_ms)
        return change


class Moment:
    """An event about to be folded, with the history before it."""

    def __init__(self, features: NaiveFeatures, event: Event, account: Account) -> None:
        self.features, self.event, self.account = features, event, account
        self.scope = "own"

    def compute(self, declared: Sequence[Any], scope: str) -> list[Value]:
        self.scope = scope
        return [value for operator in declared for value in TWINS[type(operator)](operator, self)]

    # --- the account

    @property
    def remembered(self) -> list[Past]:
        return self.account.past[-REMEMBERED:]

    @property
    def forgotten(self) -> list[Past]:
        """Events since the account began anew that only tiles speak of."""
        return self.account.past[:-REMEMBERED]

    def beyond(self, width_ms: int) -> bool:
        """A forgotten event is later than the start of the window."""
        return any(p.event.time_ms > self.event.time_ms - width_ms for p in self.forgotten)

    def windowed(self, window: str, weigh: Callable[[Event], float]) -> Value:
        """Sum of weights over the window, this event included; bounds where tiles took part."""
        t, width = self.event.time_ms, window_ms(window)
        own = weigh(self.event)
        exact = own + sum(weigh(p.event) for p in self.account.past if t - width < p.event.time_ms <= t)
        if not self.beyond(width):
            return float(exact)
        tile = width // TILES
        ring = own + sum(weigh(p.event) for p in self.remembered if t - width < p.event.time_ms <= t)
        newest = self.account.newest
        late = newest is not None and t < newest  # a late event may find its tiles overwritten by younger ones
        sure = [p for p in self.forgotten if t - (TILES - 1) * tile <= p.event.time_ms <= t and not late]
        most = [p for p in self.forgotten if t - width < p.event.time_ms < t + (tile if late else 1)]
        return Bounds(ring + sum(weigh(p.event) for p in sure), ring + sum(weigh(p.event) for p in most))

    def value_of(self, name: str, event: Event) -> Any:
        """Identity of an entity or code of a category; None when missing."""
        return event.entities[name] if name in event.entities else event.categories[name] or None

    def distinct(self, name: str, window: str) -> Value:
        t, width = self.event.time_ms, window_ms(window)

        def values(past: Sequence[Past], until: int = t) -> set[Any]:
            found = {self.value_of(name, p.event) for p in past if t - width < p.event.time_ms <= until}
            return (found | {self.value_of(name, self.event)}) - {None}

        if not self.beyond(width):
            return float(len(values(self.account.past)))
        # A value whose newest event is forgotten, while older ones that came late are not, may go uncounted.
        forgotten, remembered = self.newest_by_value(name, self.forgotten), self.newest_by_value(name, self.remembered)
        unsure = {value for value, time_ms in remembered.items() if forgotten.get(value, time_ms) > time_ms}
        low = len(values(self.remembered) - (unsure - {self.value_of(name, self.event)}))
        high = len(values(self.account.past, t + width // TILES))
        return Bounds(low, high + linear_counting_error(high))

    def newest_by_value(self, name: str, past: Sequence[Past]) -> dict[Any, int]:
        newest: dict[Any, int] = {}
        for p in past:
            value = self.value_of(name, p.event)
            newest[value] = max(newest.get(value, p.event.time_ms), p.event.time_ms)
        return newest

    def gap(self, name: str | None = None) -> float:
        """Seconds since the newest remembered event at or before this one (with the same value of `name`)."""
        mine = None if name is None else self.value_of(name, self.event)
        if name is not None and mine is None:
            return math.nan
        times = [
            p.event.time_ms
            for p in self.remembered
            if p.event.time_ms <= self.event.time_ms and (name is None or self.value_of(name, p.event) == mine)
        ]
        return (self.event.time_ms - max(times)) / 1000 if times else math.nan

    @property
    def age_days(self) -> float:
        first = self.account.first
        return 0.0 if first is None else max(self.event.time_ms - first, 0) / DAY_MS

    @property
    def amount(self) -> float:
        return math.nan if self.event.amount_minor < 0 else self.event.amount_minor / 100

    @property
    def norm(self) -> list[int]:
        """1000 ln(1 + amount), rounded, of the past with a rate and without confirmed fraud."""
        kept = [p.event.amount_minor for p in self.account.past if p.event.amount_minor >= 0 and not p.fraud]
        return [round(1000 * math.log1p(minor / 100)) for minor in kept]

    @property
    def norm_mean(self) -> float:
        norm = self.norm
        return sum(norm) / len(norm) / 1000 if norm else math.nan

    @property
    def norm_spread(self) -> float:
        """Standard deviation, shrunk towards 1 as if by two events of spread 1."""
        norm, mean = self.norm, self.norm_mean
        return math.sqrt((sum((x / 1000 - mean) ** 2 for x in norm) + 2) / (len(norm) + 2))

    @property
    def last_place(self) -> Event | None:
        placed = [p.event for p in self.account.past if p.event.latitude is not None and p.event.longitude is not None]
        return placed[-1] if placed else None

    @property
    def distance_km(self) -> float:
        """Angle between two unit vectors times the mean radius of the Earth."""
        place, event = self.last_place, self.event
        if place is None or event.latitude is None or event.longitude is None:
            return math.nan
        here, there = unit_vector(event.latitude, event.longitude), unit_vector(place.latitude, place.longitude)
        chord = math.dist(here, there)
        return 6371.0088 * 2 * math.asin(min(chord / 2, 1.0))

    # --- shared entities

    def entity(self, kind: str) -> Shared | None:
        identity = self.event.entities[kind]
        if identity is None:
            return None
        return self.features.shared.get((kind, self.event.partition, identity), Shared())

    def others(self, kind: str) -> list[Shared]:
        identity = self.event.entities[kind]
        if identity is None or self.scope == "own":
            return []
        return self.features.others.get((kind, self.event.partition, identity), [])

    def entity_window(self, kind: str, window: str) -> Window | None:
        """Earlier events whose tile of the clock is one of the last sixteen."""
        own = self.entity(kind)
        if own is None:
            return None
        width = window_ms(window) // TILES
        tile = (self.event.time_ms if own.clock is None else max(own.clock, self.event.time_ms)) // width
        amounts, changes = [], []
        for partial in (own, *self.others(kind)):
            amounts += [amount for clock, amount in partial.events if tile - TILES < clock // width <= tile]
            changes += [change for clock, change in partial.changes if tile - TILES < clock // width <= tile]
        return Window(len(amounts), sum(amounts), max(sum(changes), 0))

    def entity_last_fraud(self, kind: str) -> int | None:
        own = self.entity(kind)
        if own is None:
            return None
        moment = own.last_fraud
        for partial in self.others(kind):
            moment = latest(moment, partial.last_fraud)
        return moment

    def days_since(self, moment_ms: int | None) -> float:
        if moment_ms is None or self.event.time_ms - moment_ms >= operators.LONGEST_MEMORY_MS:
            return math.nan
        return max(self.event.time_ms - moment_ms, 0) / DAY_MS


def unit_vector(latitude: float | None, longitude: float | None) -> tuple[float, float, float]:
    phi, lam = math.radians(latitude or 0.0), math.radians(longitude or 0.0)
    return math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)


def linear_counting_error(n: int) -> float:
    """Four standard errors of linear counting over 64 bits (Whang et al. 1990), and one for rounding."""
    load = n / 64
    return 4 * math.sqrt(64 * (math.exp(load) - load - 1)) + 1


# --- one function per operator


def scaled(operator: Any, value: Value) -> list[Value]:
    """ln(1 + x) where the declaration asks for it."""
    if not operator.log:
        return [value]
    return [value.map(math.log1p) if isinstance(value, Bounds) else math.log1p(value)]


def amount(op: operators.Amount, at: Moment) -> list[Value]:
    return scaled(op, at.amount)


def count(op: operators.Count, at: Moment) -> list[Value]:
    return scaled(op, at.windowed(op.window, lambda event: 1))


def money(op: operators.Sum, at: Moment) -> list[Value]:
    return scaled(op, at.windowed(op.window, lambda event: max(event.amount_minor, 0) / 100))


def distinct(op: operators.Distinct, at: Moment) -> list[Value]:
    return scaled(op, at.distinct(op.field, op.window))


def gap(op: operators.Gap, at: Moment) -> list[Value]:
    return scaled(op, at.gap())


def gap_same(op: operators.GapSame, at: Moment) -> list[Value]:
    return scaled(op, at.gap(op.field))


def usual_rate(op: operators.UsualRate, at: Moment) -> list[Value]:
    days = min(max(at.age_days, 1.0), window_ms(op.window) / DAY_MS)
    events = at.windowed(op.window, lambda event: 1)
    if isinstance(events, Bounds):
        return scaled(op, events.map(lambda n: (n - 1) / days))
    return scaled(op, (events - 1) / days)


def account_age(op: operators.AccountAge, at: Moment) -> list[Value]:
    return scaled(op, at.age_days)


def past_events(op: operators.PastEvents, at: Moment) -> list[Value]:
    return scaled(op, float(len(at.account.past)))


def norm_mean(op: operators.NormMean, at: Moment) -> list[Value]:
    return scaled(op, math.expm1(at.norm_mean))


def norm_ratio(op: operators.NormRatio, at: Moment) -> list[Value]:
    return [math.log1p(at.amount) - at.norm_mean]


def norm_times(op: operators.NormTimes, at: Moment) -> list[Value]:
    return scaled(op, math.exp(clip(math.log1p(at.amount) - at.norm_mean, -20, 20)))


def norm_z(op: operators.NormZ, at: Moment) -> list[Value]:
    return [clip((math.log1p(at.amount) - at.norm_mean) / at.norm_spread, -10, 10)]


def hour_share(op: operators.HourShare, at: Moment) -> list[Value]:
    hours = [p.event.time_ms // HOUR_MS % 24 for p in at.account.past if not p.fraud]
    mine = at.event.time_ms // HOUR_MS % 24
    near = sum((hour - mine) % 24 in (23, 0, 1) for hour in hours)
    return [near / len(hours) if hours else math.nan]


def distance(op: operators.Distance, at: Moment) -> list[Value]:
    return scaled(op, at.distance_km)


def speed(op: operators.Speed, at: Moment) -> list[Value]:
    place = at.last_place
    elapsed = 0 if place is None else abs(at.event.time_ms - place.time_ms)
    return scaled(op, at.distance_km / (max(elapsed, 60_000) / HOUR_MS))


def frauds(op: operators.Frauds, at: Moment) -> list[Value]:
    return scaled(op, float(max(at.account.frauds, 0)))


def since_fraud(op: operators.SinceFraud, at: Moment) -> list[Value]:
    return scaled(op, at.days_since(at.account.last_fraud))


def calendar(op: operators.Calendar, at: Moment) -> list[Value]:
    minute = at.event.time_ms // 60_000 % 1440
    monday = 4 * DAY_MS  # 5 January 1970
    hour = (at.event.time_ms - monday) // HOUR_MS % 168
    day, week = 2 * math.pi * minute / 1440, 2 * math.pi * hour / 168
    return [math.sin(day), math.cos(day), math.sin(week), math.cos(week)]


def code(op: operators.Code, at: Moment) -> list[Value]:
    return [float(at.event.categories[op.field])]


def entity_count(op: operators.EntityCount, at: Moment) -> list[Value]:
    window = at.entity_window(op.entity, op.window)
    return scaled(op, math.nan if window is None else float(window.count))


def entity_mean_times(op: operators.EntityMeanTimes, at: Moment) -> list[Value]:
    window = at.entity_window(op.entity, op.window)
    if window is None or not window.count:
        return [math.nan]
    return [math.log1p(at.amount) - math.log1p(window.sum_minor / 100 / window.count)]


def entity_frauds(op: operators.EntityFrauds, at: Moment) -> list[Value]:
    window = at.entity_window(op.entity, op.window)
    return scaled(op, math.nan if window is None else float(window.fraud))


def entity_fraud_share(op: operators.EntityFraudShare, at: Moment) -> list[Value]:
    window = at.entity_window(op.entity, op.window)
    return [math.nan if window is None else (window.fraud + 0.01) / (window.count + 1)]


def entity_since_fraud(op: operators.EntitySinceFraud, at: Moment) -> list[Value]:
    return scaled(op, at.days_since(at.entity_last_fraud(op.entity)))


def clip(value: float, low: float, high: float) -> float:
    return value if math.isnan(value) else min(max(value, low), high)


TWINS: dict[type, Callable[[Any, Moment], list[Value]]] = {
    operators.Amount: amount,
    operators.Count: count,
    operators.Sum: money,
    operators.Distinct: distinct,
    operators.Gap: gap,
    operators.GapSame: gap_same,
    operators.UsualRate: usual_rate,
    operators.AccountAge: account_age,
    operators.PastEvents: past_events,
    operators.NormMean: norm_mean,
    operators.NormRatio: norm_ratio,
    operators.NormTimes: norm_times,
    operators.NormZ: norm_z,
    operators.HourShare: hour_share,
    operators.Distance: distance,
    operators.Speed: speed,
    operators.Frauds: frauds,
    operators.SinceFraud: since_fraud,
    operators.Calendar: calendar,
    operators.Code: code,
    operators.EntityCount: entity_count,
    operators.EntityMeanTimes: entity_mean_times,
    operators.EntityFrauds: entity_frauds,
    operators.EntityFraudShare: entity_fraud_share,
    operators.EntitySinceFraud: entity_since_fraud,
}
