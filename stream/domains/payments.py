"""Card and account payments: the declaration of the first domain. No logic; see features/operators.py."""

from __future__ import annotations

from stream.domains.payments_schema import Label, Transaction
from stream.features.operators import (
    AccountAge,
    Amount,
    Calendar,
    Code,
    Count,
    Distance,
    Distinct,
    EntityCount,
    EntityFrauds,
    EntityFraudShare,
    EntityMeanTimes,
    EntitySinceFraud,
    Frauds,
    Gap,
    GapSame,
    HourShare,
    NormMean,
    NormRatio,
    NormTimes,
    NormZ,
    PastEvents,
    SinceFraud,
    Speed,
    Sum,
    UsualRate,
)
from stream.features.spec import Category, Domain, Entity, ReasonTemplate

_MCC, _COUNTRY, _CHANNEL, _ENTRY = 1023, 511, 31, 31

_STEP = (
    Amount("step_amount", "amount", log=True),
    NormRatio("step_norm_ratio", "amount"),
    NormZ("step_norm_z", "amount"),
    Gap("step_gap", "velocity", log=True),
    GapSame("step_gap_merchant", "merchant", log=True, field="merchant"),
    GapSame("step_gap_terminal", "terminal", log=True, field="terminal"),
    GapSame("step_gap_device", "device", log=True, field="device"),
    GapSame("step_gap_country", "place", log=True, field="country"),
    Count("step_count_10min", "velocity", log=True, window="10min"),
    Count("step_count_1h", "velocity", log=True, window="1h"),
    Count("step_count_24h", "velocity", log=True, window="24h"),
    Sum("step_sum_24h", "amount", log=True, window="24h"),
    Distinct("step_merchants_24h", "merchant", log=True, field="merchant", window="24h"),
    HourShare("step_hour_share", "time"),
    Distance("step_distance", "place", log=True),
    Speed("step_speed", "place", log=True),
    Calendar(),
    EntityCount("step_merchant_count_1h", "merchant", log=True, entity="merchant", window="1h"),
    EntityMeanTimes("step_merchant_mean_times", "merchant", entity="merchant", window="7d"),
    Code("step_mcc", "merchant", field="mcc", buckets=_MCC),
    Code("step_country", "place", field="country", buckets=_COUNTRY),
    Code("step_channel", "channel", field="channel", buckets=_CHANNEL),
    Code("step_entry_mode", "channel", field="entry_mode", buckets=_ENTRY),
)

_AGGREGATES = (
    Amount("amount", "amount"),
    NormMean("usual_amount", "amount"),
    NormTimes("amount_times_usual", "amount"),
    NormZ("amount_z", "amount"),
    Count("count_10min", "velocity", window="10min"),
    Count("count_1h", "velocity", window="1h"),
    Count("count_24h", "velocity", window="24h"),
    Count("count_7d", "velocity", window="7d"),
    Count("count_30d", "velocity", window="30d"),
    UsualRate("usual_per_day", "velocity", window="30d"),
    Sum("sum_10min", "amount", window="10min"),
    Sum("sum_1h", "amount", window="1h"),
    Sum("sum_24h", "amount", window="24h"),
    Sum("sum_7d", "amount", window="7d"),
    Sum("sum_30d", "amount", window="30d"),
    Distinct("merchants_10min", "merchant", field="merchant", window="10min"),
    Distinct("merchants_1h", "merchant", field="merchant", window="1h"),
    Distinct("merchants_24h", "merchant", field="merchant", window="24h"),
    Distinct("merchants_7d", "merchant", field="merchant", window="7d"),
    Distinct("merchants_30d", "merchant", field="merchant", window="30d"),
    Distinct("countries_24h", "place", field="country", window="24h"),
    Distinct("devices_7d", "device", field="device", window="7d"),
    Gap("gap", "velocity"),
    GapSame("gap_merchant", "merchant", field="merchant"),
    GapSame("gap_device", "device", field="device"),
    GapSame("gap_country", "place", field="country"),
    HourShare("hour_share", "time"),
    Distance("distance_km", "place"),
    Speed("speed_kmh", "place"),
    AccountAge("account_age_days", "history"),
    PastEvents("past_events", "history"),
    Frauds("account_frauds", "history"),
    SinceFraud("days_since_fraud", "history"),
    EntityCount("merchant_count_1h", "merchant", entity="merchant", window="1h"),
    EntityCount("merchant_count_24h", "merchant", entity="merchant", window="24h"),
    EntityCount("merchant_count_7d", "merchant", entity="merchant", window="7d"),
    EntityMeanTimes("merchant_mean_times", "merchant", entity="merchant", window="7d"),
    EntityFrauds("merchant_frauds_7d", "merchant", entity="merchant", window="7d"),
    EntityFraudShare("merchant_fraud_share_30d", "merchant", entity="merchant", window="30d"),
    EntityCount("terminal_count_24h", "terminal", entity="terminal", window="24h"),
    EntityFrauds("terminal_frauds_7d", "terminal", entity="terminal", window="7d"),
    EntityFraudShare("terminal_fraud_share_30d", "terminal", entity="terminal", window="30d"),
    EntitySinceFraud("terminal_days_since_fraud", "terminal", entity="terminal"),
    EntityCount("device_count_24h", "device", entity="device", window="24h"),
    EntityFrauds("device_frauds_30d", "device", entity="device", window="30d"),
    EntityCount("ip_count_1h", "ip", entity="ip", window="1h"),
    EntityCount("ip_count_24h", "ip", entity="ip", window="24h"),
    EntityFrauds("ip_frauds_24h", "ip", entity="ip", window="24h"),
    Calendar(),
    Code("mcc", "merchant", field="mcc", buckets=_MCC),
    Code("country", "place", field="country", buckets=_COUNTRY),
    Code("channel", "channel", field="channel", buckets=_CHANNEL),
    Code("entry_mode", "channel", field="entry_mode", buckets=_ENTRY),
)

_MANY = float("inf")
_REASONS = (
    ReasonTemplate(
        "VELOCITY_10MIN", "velocity", "{count_10min:.0f} payments in 10 min, usually {usual_per_day:.1f} per day",
        (("count_10min", 3, _MANY),),
    ),
    ReasonTemplate(
        "VELOCITY_1H", "velocity", "{count_1h:.0f} payments in 1 h, usually {usual_per_day:.1f} per day",
        (("count_1h", 3, _MANY),),
    ),
    ReasonTemplate(
        "VELOCITY", "velocity", "{count_24h:.0f} payments in 24 h, usually {usual_per_day:.1f} per day",
        (("count_24h", 2, _MANY),),
    ),
    ReasonTemplate(
        "QUICK_SUCCESSION", "velocity", "{gap:.0f} s after the account's last payment", (("gap", 0, 600),)
    ),
    ReasonTemplate("PACE", "velocity", "{count_30d:.0f} payments in 30 d, {count_24h:.0f} of them in the last 24 h"),
    ReasonTemplate(
        "AMOUNT_HIGH", "amount", "amount {amount:,.2f}, {amount_times_usual:.1f} times the account's usual {usual_amount:,.2f}",
        (("amount_times_usual", 1.5, _MANY),),
    ),
    ReasonTemplate(
        "AMOUNT_LOW", "amount", "amount {amount:,.2f}, far below the account's usual {usual_amount:,.2f}",
        (("amount_times_usual", 0, 0.5),),
    ),
    ReasonTemplate("SPENDING", "amount", "{sum_24h:,.2f} spent in 24 h, {sum_30d:,.2f} in 30 d"),
    ReasonTemplate("AMOUNT", "amount", "amount {amount:,.2f}"),
    ReasonTemplate(
        "SPEED", "place", "{distance_km:,.0f} km from the last place, at {speed_kmh:,.0f} km/h", (("speed_kmh", 300, _MANY),)
    ),
    ReasonTemplate(
        "COUNTRIES", "place", "{countries_24h:.0f} countries in 24 h", (("countries_24h", 2, _MANY),)
    ),
    ReasonTemplate("DISTANCE", "place", "{distance_km:,.0f} km from the last place"),
    ReasonTemplate(
        "MERCHANTS", "merchant", "{merchants_24h:.0f} different merchants in 24 h", (("merchants_24h", 3, _MANY),)
    ),
    ReasonTemplate(
        "MERCHANT_FRAUD", "merchant", "{merchant_frauds_7d:.0f} confirmed frauds at this merchant in 7 d",
        (("merchant_frauds_7d", 1, _MANY),),
    ),
    ReasonTemplate(
        "MERCHANT_BUSY", "merchant", "{merchant_count_1h:.0f} payments at this merchant in the last hour, {merchant_count_7d:.0f} in 7 d"
    ),
    ReasonTemplate(
        "TERMINAL_FRAUD", "terminal", "{terminal_frauds_7d:.0f} confirmed frauds at this terminal in 7 d",
        (("terminal_frauds_7d", 1, _MANY),),
    ),
    ReasonTemplate("TERMINAL", "terminal", "{terminal_count_24h:.0f} payments at this terminal in 24 h"),
    ReasonTemplate(
        "DEVICE_FRAUD", "device", "{device_frauds_30d:.0f} confirmed frauds on this device in 30 d",
        (("device_frauds_30d", 1, _MANY),),
    ),
    ReasonTemplate("DEVICES", "device", "{devices_7d:.0f} devices in 7 d", (("devices_7d", 2, _MANY),)),
    ReasonTemplate("DEVICE", "device", "{device_count_24h:.0f} payments on this device in 24 h"),
    ReasonTemplate("IP", "ip", "{ip_count_1h:.0f} payments from this address in 1 h, {ip_count_24h:.0f} in 24 h"),
    ReasonTemplate("UNUSUAL_HOUR", "time", "{hour_share:.0%} of the account's payments are at this hour of day"),
    ReasonTemplate(
        "ACCOUNT_FRAUD", "history", "{account_frauds:.0f} confirmed frauds on this account, the last {days_since_fraud:.0f} d ago",
        (("account_frauds", 1, _MANY),),
    ),
    ReasonTemplate("NEW_ACCOUNT", "history", "account known for {account_age_days:.0f} d with {past_events:.0f} payments"),
    ReasonTemplate("CHANNEL", "channel", "channel and entry mode of the payment"),
)

DOMAIN = Domain(
    name="payments",
    event=Transaction,
    label=Label,
    entities=(
        Entity("merchant", "merchant_id", ("1h", "24h", "7d", "30d")),
        Entity("terminal", "terminal_id", ("24h", "7d", "30d")),
        Entity("device", "device_id", ("24h", "30d")),
        Entity("ip", "ip", ("1h", "24h")),
    ),
    categories=(
        Category("mcc", _MCC),
        Category("country", _COUNTRY),
        Category("channel", _CHANNEL),
        Category("entry_mode", _ENTRY),
    ),
    step=_STEP,
    aggregates=_AGGREGATES,
    base_currency="USD",
    reasons=_REASONS,
)
