"""The slow twin of each operator: one function of a declaration and a moment."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

from stream.features import operators
from stream.features.spec import window_ms
from tests.parity.naive_features import DAY_MS, HOUR_MS, Moment, is_fraud
from tests.parity.naive_history import Bounds, Value


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
    return scaled(op, math.expm1(at.norm.mean))


def norm_ratio(op: operators.NormRatio, at: Moment) -> list[Value]:
    return [math.log1p(at.amount) - at.norm.mean]


def norm_times(op: operators.NormTimes, at: Moment) -> list[Value]:
    return scaled(op, math.exp(clip(math.log1p(at.amount) - at.norm.mean, -20, 20)))


def norm_z(op: operators.NormZ, at: Moment) -> list[Value]:
    return [clip((math.log1p(at.amount) - at.norm.mean) / at.norm.spread, -10, 10)]


def mean(op: operators.Mean, at: Moment) -> list[Value]:
    total, events = (at.windowed(op.window, weigh) for weigh in (lambda e: max(e.amount_minor, 0) / 100, lambda e: 1))
    if isinstance(total, Bounds) and isinstance(events, Bounds):
        return scaled(op, Bounds(total.low / events.high, total.high / events.low))
    return scaled(op, total / events)


def largest(op: operators.Max, at: Moment) -> list[Value]:
    amounts = [p.event.amount_minor for p in at.judged(0, window_ms(op.window))]
    return scaled(op, max([*amounts, at.event.amount_minor, 0]) / 100)


def first_seen(op: operators.FirstSeen, at: Moment) -> list[Value]:
    if at.value_of(op.field, at.event) is None:
        return [math.nan]
    return [float(math.isnan(at.gap(op.field)))]


def usual(at: Moment) -> float:
    """In minor units, whole ones."""
    return max(float(round(100 * math.expm1(at.norm.mean))), 1.0) if at.norm.count > 0 else math.nan


def excess(op: operators.Excess, at: Moment) -> list[Value]:
    amounts = [p.event.amount_minor for p in at.judged(0, window_ms(op.window))]
    if at.norm.count <= 0:
        return [math.nan]
    return scaled(op, sum(max(amount - round(op.above * usual(at)), 0) for amount in amounts) / usual(at))


def largest_times(op: operators.LargestTimes, at: Moment) -> list[Value]:
    amounts = [p.event.amount_minor for p in at.judged(0, window_ms(op.window))]
    return scaled(op, max([*amounts, 0]) / usual(at))


def hour_share(op: operators.HourShare, at: Moment) -> list[Value]:
    mine = at.event.time_ms // HOUR_MS
    return [at.share_of_habit(lambda hour: (hour - mine) % 24 in (23, 0, 1))]


def night_share(op: operators.NightShare, at: Moment) -> list[Value]:
    return [at.share_of_habit(lambda hour: hour % 24 < 6)]


def weekend_share(op: operators.WeekendShare, at: Moment) -> list[Value]:
    return [at.share_of_habit(on_weekend)]


def on_weekend(hour: int) -> bool:
    return (hour // 24 + 3) % 7 in (5, 6)  # 1 January 1970 was a Thursday, and Monday is 0


def night(op: operators.Night, at: Moment) -> list[Value]:
    return [float(at.event.time_ms // HOUR_MS % 24 < 6)]


def weekend(op: operators.Weekend, at: Moment) -> list[Value]:
    return [float(on_weekend(at.event.time_ms // HOUR_MS))]


def number_of(op: operators.NumberOf, at: Moment) -> list[Value]:
    number = at.event.numbers[op.field]
    return [math.nan] if number is None else scaled(op, max(number, 0.0) if op.log else number)


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


def recent_frauds(op: operators.RecentFrauds, at: Moment) -> list[Value]:
    events = at.judged(0, at.delay_ms + window_ms(op.window))
    return scaled(op, float(sum(is_fraud(p, op.unexplained) for p in events)))


def fraud_share(op: operators.FraudShare, at: Moment) -> list[Value]:
    events = at.judged(at.delay_ms, at.delay_ms + window_ms(op.window))
    return [(sum(is_fraud(p, op.unexplained) for p in events) + 0.01) / (len(events) + 1)]


def since_genuine(op: operators.SinceGenuine, at: Moment) -> list[Value]:
    return scaled(op, math.nan if math.isinf(at.genuine_age) else at.genuine_age / DAY_MS)


def streak(op: operators.Streak, at: Moment) -> list[Value]:
    return scaled(op, float(len(at.streak(op.unexplained))))


def streak_age(op: operators.StreakAge, at: Moment) -> list[Value]:
    ages = at.streak(op.unexplained)
    return scaled(op, max(ages) / DAY_MS if ages else math.nan)


def calendar(op: operators.Calendar, at: Moment) -> list[Value]:
    minute = at.event.time_ms // 60_000 % 1440
    monday = 4 * DAY_MS  # 5 January 1970
    hour = (at.event.time_ms - monday) // HOUR_MS % 168
    day, week = 2 * math.pi * minute / 1440, 2 * math.pi * hour / 168
    return [math.sin(day), math.cos(day), math.sin(week), math.cos(week)]


def code(op: operators.Code, at: Moment) -> list[Value]:
    return [float(at.event.categories[op.field])]


def entity_count(op: operators.EntityCount, at: Moment) -> list[Value]:
    events = at.entity_events(op.entity, op.window)
    return scaled(op, math.nan if events is None else float(len(events)))


def days(window: str) -> int:
    return window_ms(window) // DAY_MS


def entity_sum(op: operators.EntitySum, at: Moment) -> list[Value]:
    if at.entity(op.entity) is None:
        return [math.nan]
    return scaled(op, sum(at.entity_days(op.entity, 0, days(op.window))) / 100)


def entity_max(op: operators.EntityMax, at: Moment) -> list[Value]:
    if at.entity(op.entity) is None:
        return [math.nan]
    return scaled(op, max([0, *at.entity_days(op.entity, 0, days(op.window))]) / 100)


def entity_accounts(op: operators.EntityAccounts, at: Moment) -> list[Value]:
    """One of 64 places for each account, by the top bits of its crc times a constant; n such that so many are taken."""
    if at.entity(op.entity) is None:
        return [math.nan]
    seen = {account for _, account in at.seen_on(op.entity, 0, days(op.window))}
    taken = {(zlib.crc32(account.encode()) or 1) * 0x9E3779B1 % 2**32 // 2**26 for account in seen}
    return scaled(op, -64 * math.log(max(64 - len(taken), 1) / 64))


def entity_mean_times(op: operators.EntityMeanTimes, at: Moment) -> list[Value]:
    amounts = [] if at.entity(op.entity) is None else at.entity_days(op.entity, 0, days(op.window))
    if not amounts:
        return [math.nan]
    return [math.log1p(at.amount) - math.log1p(sum(amounts) / 100 / len(amounts))]


def entity_frauds(op: operators.EntityFrauds, at: Moment) -> list[Value]:
    if at.entity(op.entity) is None:
        return [math.nan]
    until = at.delay_ms // DAY_MS + days(op.window) + 1
    return scaled(op, float(at.entity_frauds(op.entity, 0, until, op.unexplained)))


def entity_fraud_share(op: operators.EntityFraudShare, at: Moment) -> list[Value]:
    if at.entity(op.entity) is None:
        return [math.nan]
    delay, until = at.delay_ms // DAY_MS, at.delay_ms // DAY_MS + days(op.window) + 1
    frauds = at.entity_frauds(op.entity, delay, until, op.unexplained)
    arriving = len(at.entity_days(op.entity, delay, delay + 1)) * (at.entity_clock(op.entity) % DAY_MS) / DAY_MS
    events = max(len(at.entity_days(op.entity, delay + 1, until)) + arriving, frauds)
    return [(frauds + 0.01) / (events + 1)]


def entity_since_fraud(op: operators.EntitySinceFraud, at: Moment) -> list[Value]:
    return scaled(op, at.days_since(at.entity_last_fraud(op.entity)))


def entity_since_genuine(op: operators.EntitySinceGenuine, at: Moment) -> list[Value]:
    genuine = None if at.entity(op.entity) is None else at.entity_genuine(op.entity)
    return scaled(op, math.nan if genuine is None else float(genuine))


def entity_streak(op: operators.EntityStreak, at: Moment) -> list[Value]:
    if at.entity(op.entity) is None:
        return [math.nan]
    return scaled(op, float(len(at.entity_streak(op.entity, op.unexplained))))


def entity_streak_age(op: operators.EntityStreakAge, at: Moment) -> list[Value]:
    found = [] if at.entity(op.entity) is None else at.entity_streak(op.entity, op.unexplained)
    return scaled(op, float(max(found)) if found else math.nan)


def clip(value: float, low: float, high: float) -> float:
    return value if math.isnan(value) else min(max(value, low), high)


TWINS: dict[type, Callable[[Any, Moment], list[Value]]] = {
    operators.Amount: amount,
    operators.Count: count,
    operators.Sum: money,
    operators.Mean: mean,
    operators.Max: largest,
    operators.Distinct: distinct,
    operators.Gap: gap,
    operators.GapSame: gap_same,
    operators.FirstSeen: first_seen,
    operators.UsualRate: usual_rate,
    operators.AccountAge: account_age,
    operators.PastEvents: past_events,
    operators.NormMean: norm_mean,
    operators.NormRatio: norm_ratio,
    operators.NormTimes: norm_times,
    operators.NormZ: norm_z,
    operators.Excess: excess,
    operators.LargestTimes: largest_times,
    operators.HourShare: hour_share,
    operators.NightShare: night_share,
    operators.WeekendShare: weekend_share,
    operators.Distance: distance,
    operators.Speed: speed,
    operators.Frauds: frauds,
    operators.RecentFrauds: recent_frauds,
    operators.FraudShare: fraud_share,
    operators.SinceFraud: since_fraud,
    operators.SinceGenuine: since_genuine,
    operators.Streak: streak,
    operators.StreakAge: streak_age,
    operators.Calendar: calendar,
    operators.Night: night,
    operators.Weekend: weekend,
    operators.Code: code,
    operators.NumberOf: number_of,
    operators.EntityCount: entity_count,
    operators.EntitySum: entity_sum,
    operators.EntityMax: entity_max,
    operators.EntityAccounts: entity_accounts,
    operators.EntityMeanTimes: entity_mean_times,
    operators.EntityFrauds: entity_frauds,
    operators.EntityFraudShare: entity_fraud_share,
    operators.EntitySinceFraud: entity_since_fraud,
    operators.EntitySinceGenuine: entity_since_genuine,
    operators.EntityStreak: entity_streak,
    operators.EntityStreakAge: entity_streak_age,
}
