"""The slow obvious twin of stream/features: one item at a time, over lists of all that ever happened.

Nothing here is vectorised, cached or forgotten, except what the declared semantics forget: an account
begins anew when idle past the horizon, it remembers its last 64 events, 64 ids and 16 verdicts, and an
entity's windows are counted in tiles and days of its own clock. Where an account has had more events than it
remembers, the twin gives bounds instead of a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from stream.features.spec import Domain, window_ms
from tests.parity.naive_history import Account, Bounds, Change, Event, Label, Outcome, Past, Seen, Shared, Value, latest

REMEMBERED = 64
VERDICTS = 16
TILES = 16
DAY_MS = 86_400_000
HOUR_MS = 3_600_000


class NaiveFeatures:
    """Same inputs as FeatureState, same meaning of the outputs."""

    def __init__(self, domain: Domain, twins: Mapping[type, Callable[[Any, Moment], list[Value]]]) -> None:
        """`twins`: one function per operator, those of naive_operators."""
        self.domain, self.twins = domain, twins
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
        account.steps.append(moment.compute(self.domain.step))
        outcome.steps = account.steps[-self.domain.sequence_length :]
        outcome.aggregates = moment.compute(self.domain.aggregates)
        account.past.append(Past(event, Norm(account).bring(event.amount_minor)))
        account.ids.append(event.event_id)
        for kind, identity in event.entities.items():
            if identity is not None:
                shared = self.shared.setdefault((kind, event.partition, identity), Shared())
                clock = event.time_ms if shared.clock is None else max(shared.clock, event.time_ms)
                shared.events.append((clock, (max(event.amount_minor, 0), event.account)))
        return outcome

    def label(self, label: Label) -> int | None:
        """+1 a fraud became known, -1 one was taken back, 0 found genuine, None nothing new."""
        account = self.accounts.setdefault((label.partition, label.account), Account())
        earlier = [verdict for verdict in account.verdicts[-VERDICTS:] if verdict[0] == label.event_id]
        if earlier and earlier[-1][1] == label.fraud:
            return None
        was_fraud, was_unexplained = earlier[-1][1:] if earlier else (False, False)
        change = int(label.fraud) - int(was_fraud)
        newest = max((past.event.time_ms for past in account.past), default=None)
        if newest is not None and label.known_ms - newest > self.horizon_ms:
            account.begin_anew()
        account.frauds += change
        if change > 0:
            account.last_fraud = latest(account.last_fraud, label.known_ms)
        unexplained = self.judge(account, label, change)
        account.verdicts.append((label.event_id, label.fraud, unexplained))
        odd = int(unexplained) if change > 0 else -int(was_unexplained) if change < 0 else 0
        for kind, identity in label.entities.items():
            if identity is not None:
                shared = self.shared.setdefault((kind, label.partition, identity), Shared())
                if shared.clock is not None:
                    shared.changes.append(Change(min(label.time_ms, shared.clock) // DAY_MS, change, odd))
                    if shared.clock // DAY_MS - shared.changes[-1].day >= self.kept_days(kind):
                        shared.changes.pop()
                if change > 0:
                    shared.last_fraud = latest(shared.last_fraud, label.known_ms)
        return change

    def judge(self, account: Account, label: Label, change: int) -> bool:
        """Marks the event that is meant, takes it out of the norm or puts it back; whether it is unexplained."""
        meant = [past for past in account.past if past.event.event_id == label.event_id]
        if meant:  # two only when an id came again after it was forgotten
            meant[-1].fraud = label.fraud
        remembered = [past for past in meant if any(past is p for p in account.past[-REMEMBERED:])]
        norm = Norm(account)
        if remembered:
            if change and remembered[-1].taken_out == (change < 0):
                remembered[-1].taken_out = change > 0
        elif change and meant and label.amount_minor >= 0:
            account.corrections.append((-change, norm.clip(label.amount_minor)))
        norm = Norm(account)
        usual = label.fraud and norm.count > 0 and label.amount_minor >= 0
        limit = max(norm.total, 0) / max(norm.count, 1) + round(1000 * math.log(2))
        unexplained = usual and thousandths(label.amount_minor) <= limit
        if remembered:
            remembered[-1].verdict = ("unexplained" if unexplained else "fraud") if label.fraud else "genuine"
        return unexplained

    def kept_days(self, kind: str) -> int:
        """Days that an entity's row goes back, its clock's own included."""
        entity = next(entity for entity in self.domain.entities if entity.name == kind)
        days = [window_ms(window) // DAY_MS for window in entity.windows]
        return window_ms(self.domain.label_delay) // DAY_MS + max([1, *days]) + 1


def thousandths(amount_minor: int) -> int:
    return round(1000 * math.log1p(amount_minor / 100))


class Norm:
    """The account's usual amount as 1000 ln(1 + amount): how many events, their sum, the sum of squares."""

    def __init__(self, account: Account) -> None:
        kept = [(1, p.brought) for p in account.past if p.brought is not None and not p.taken_out]
        kept += account.corrections
        self.count = sum(sign for sign, _ in kept)
        self.total = sum(sign * value for sign, value in kept)
        self.squares = sum(sign * value * value for sign, value in kept)

    @property
    def mean(self) -> float:
        return max(self.total, 0) / self.count / 1000 if self.count > 0 else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation, shrunk towards 1 as if by two events of spread 1."""
        n = max(self.count, 0)
        mean = self.total / n if n else 0.0
        variance = max(self.squares - n * mean * mean, 0.0) / 1_000_000
        return math.sqrt((variance + 2) / (n + 2))

    def clip(self, amount_minor: int) -> int:
        """At most two spreads from the mean, once there are three events."""
        value = thousandths(amount_minor)
        if self.count < 3:
            return value
        low, high = round(1000 * (self.mean - 2 * self.spread)), round(1000 * (self.mean + 2 * self.spread))
        return int(min(max(value, low, 0), high))

    def bring(self, amount_minor: int) -> int | None:
        return None if amount_minor < 0 else self.clip(amount_minor)


class Moment:
    """An event about to be folded, with the history before it."""

    def __init__(self, features: NaiveFeatures, event: Event, account: Account) -> None:
        self.features, self.event, self.account = features, event, account
        self.kept: dict[tuple[str, int], list[tuple[int, Seen]]] = {}

    def compute(self, declared: Sequence[Any]) -> list[Value]:
        twins = self.features.twins
        return [value for operator in declared for value in twins[type(operator)](operator, self)]

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

    @cached_property
    def norm(self) -> Norm:
        return Norm(self.account)

    @cached_property
    def habit(self) -> list[int]:
        """Hours since 1970 of the past without confirmed fraud."""
        return [p.event.time_ms // HOUR_MS for p in self.account.past if not p.fraud]

    def share_of_habit(self, wanted: Callable[[int], bool]) -> float:
        habit = self.habit
        return sum(wanted(hour) for hour in habit) / len(habit) if habit else math.nan

    # --- verdicts on the account's own events

    @property
    def delay_ms(self) -> int:
        return window_ms(self.features.domain.label_delay)

    def judged(self, low_ms: int, high_ms: int) -> list[Past]:
        """Remembered events of an age in [low, high)."""
        return [p for p in self.remembered if low_ms <= self.event.time_ms - p.event.time_ms < high_ms]

    @property
    def genuine_age(self) -> float:
        """Milliseconds since the newest remembered event known to be genuine; infinite if there is none."""
        ages = [
            self.event.time_ms - p.event.time_ms
            for p in self.judged(0, 2**62)
            if p.verdict == "genuine" or (p.verdict is None and self.event.time_ms - p.event.time_ms >= self.delay_ms)
        ]
        return min(ages, default=math.inf)

    def streak(self, unexplained: bool) -> list[int]:
        """Ages of the frauds since then."""
        ages = [self.event.time_ms - p.event.time_ms for p in self.judged(0, 2**62) if is_fraud(p, unexplained)]
        return [age for age in ages if age < self.genuine_age]

    # --- place

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
        return [] if identity is None else self.features.others.get((kind, self.event.partition, identity), [])

    def entity_clock(self, kind: str) -> int:
        own = self.entity(kind)
        return self.event.time_ms if own is None or own.clock is None else max(own.clock, self.event.time_ms)

    def places_back(self, kind: str, width_ms: int, places: int) -> list[tuple[int, Seen]]:
        """(tile's distance from the clock's, event) of the entity's events that its rows have kept so far."""
        if (kind, width_ms) not in self.kept:
            self.kept[kind, width_ms] = self.find_places_back(kind, width_ms, places)
        return self.kept[kind, width_ms]

    def find_places_back(self, kind: str, width_ms: int, places: int) -> list[tuple[int, Seen]]:
        own, others = self.entity(kind), self.others(kind)
        assert own is not None
        now, found = self.entity_clock(kind) // width_ms, [(clock // width_ms, a) for clock, a in own.events]
        newest = max((partial.clock for partial in others if partial.clock is not None), default=0) // width_ms
        elsewhere = [(clock // width_ms, a) for partial in others for clock, a in partial.events]
        found += [(tile, a) for tile, a in elsewhere if newest - tile < places and tile <= now]
        return [(now - tile, a) for tile, a in found]

    def entity_events(self, kind: str, window: str) -> list[int] | None:
        """Amounts of earlier events whose tile of the clock is one of the last sixteen, or as many days as given."""
        if self.entity(kind) is None:
            return None
        if window_ms(window) > DAY_MS:
            return self.entity_days(kind, 0, window_ms(window) // DAY_MS)
        back = self.places_back(kind, window_ms(window) // TILES, TILES)
        return [amount for places, (amount, _) in back if places < TILES]

    def entity_days(self, kind: str, start: int, end: int) -> list[int]:
        """Amounts of the events of the days in [start, end) back from the clock's."""
        return [amount for amount, _ in self.seen_on(kind, start, end)]

    def seen_on(self, kind: str, start: int, end: int) -> list[Seen]:
        back = self.places_back(kind, DAY_MS, self.features.kept_days(kind))
        return [seen for places, seen in back if start <= places < end]

    def entity_frauds(self, kind: str, start: int, end: int, unexplained: bool) -> int:
        """Confirmed frauds among the events of those days, as far as they are known."""
        own, others = self.entity(kind), self.others(kind)
        assert own is not None
        now, kept = self.entity_clock(kind) // DAY_MS, self.features.kept_days(kind)
        newest = max((partial.clock for partial in others if partial.clock is not None), default=0) // DAY_MS
        changes = own.changes + [c for partial in others for c in partial.changes if newest - c.day < kept]
        chosen = [c for c in changes if start <= now - c.day < end]
        return max(sum(c.unexplained if unexplained else c.fraud for c in chosen), 0)

    def entity_genuine(self, kind: str) -> int | None:
        """Days back to the newest day, older than the delay, with more events than frauds; None if there is none."""
        delay = self.delay_ms // DAY_MS
        days = {day for day, _ in self.places_back(kind, DAY_MS, self.features.kept_days(kind)) if day >= delay}
        for day in sorted(days):
            if len(self.entity_days(kind, day, day + 1)) > self.entity_frauds(kind, day, day + 1, False):
                return day if day < self.features.kept_days(kind) else None
        return None

    def entity_streak(self, kind: str, unexplained: bool) -> list[int]:
        """Days back of the confirmed frauds since then, one entry each."""
        genuine = self.entity_genuine(kind)
        end = self.features.kept_days(kind) if genuine is None else genuine
        if not self.entity_frauds(kind, 0, end, unexplained=False):
            return []
        return [day for day in range(end) for _ in range(self.entity_frauds(kind, day, day + 1, unexplained))]

    def entity_last_fraud(self, kind: str) -> int | None:
        own = self.entity(kind)
        if own is None:
            return None
        moment = own.last_fraud
        for partial in self.others(kind):
            moment = latest(moment, partial.last_fraud)
        return moment

    def days_since(self, moment_ms: int | None) -> float:
        if moment_ms is None or self.event.time_ms - moment_ms >= 30 * DAY_MS:
            return math.nan
        return max(self.event.time_ms - moment_ms, 0) / DAY_MS


def unit_vector(latitude: float | None, longitude: float | None) -> tuple[float, float, float]:
    phi, lam = math.radians(latitude or 0.0), math.radians(longitude or 0.0)
    return math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)


def linear_counting_error(n: int) -> float:
    """Four standard errors of linear counting over 64 bits (Whang et al. 1990), and one for rounding."""
    load = n / 64
    return 4 * math.sqrt(64 * (math.exp(load) - load - 1)) + 1


def is_fraud(past: Past, unexplained: bool) -> bool:
    return past.verdict == "unexplained" or (past.verdict == "fraud" and not unexplained)
