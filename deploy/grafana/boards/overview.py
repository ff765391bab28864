"""Overview: is it healthy?"""

from __future__ import annotations

from deploy.grafana.boards.queries import SCORED
from deploy.grafana.panels import Board, Panel, Row

BOARD = Board(
    uid="riskstream-overview",
    title="riskstream / Overview",
    description="Is it healthy? One row of numbers that should all be green, and their recent past.",
    rows=[
        Row(
            "Healthy?",
            [
                Panel(
                    "Throughput",
                    "Events read per second, all workers. Bad: 0 while producers send, or far below the same hour of "
                    "last week.",
                    [("sum(rate(riskstream_events_in_total[$__rate_interval]))", "events/s")],
                    unit="eps",
                    kind="stat",
                    width=3,
                    height=4,
                ),
                Panel(
                    "Lag",
                    "Records not yet done, both inputs. Bad: more than a few seconds of traffic, and growing.",
                    [("sum(riskstream:consumer_lag_events:sum)", "records")],
                    kind="stat",
                    width=3,
                    height=4,
                    warn=1_000,
                    bad=10_000,
                ),
                Panel(
                    "Latency p99",
                    "From an event's source to the commit of its score, 99th percentile. Bad: above the objective of "
                    "0.5 s.",
                    [
                        (
                            "histogram_quantile(0.99, sum by (le) "
                            "(rate(riskstream_event_latency_seconds_bucket[$__rate_interval])))",
                            "p99",
                        )
                    ],
                    unit="s",
                    kind="stat",
                    width=3,
                    height=4,
                    warn=0.3,
                    bad=0.5,
                ),
                Panel(
                    "Alert rate",
                    "Share of events that are suspicious, over an hour. Bad: three times, or a third of, what the "
                    "bundle promises (Model dashboard).",
                    [("riskstream:alerts:ratio1h", "suspicious")],
                    unit="percentunit",
                    kind="stat",
                    width=3,
                    height=4,
                ),
                Panel(
                    "Identity gap",
                    "Events read minus events with an outcome. Bad: anything but 0. It is a defect: keep the log, "
                    "run the audit.",
                    [("sum(abs(riskstream_identity_gap_events))", "events")],
                    kind="stat",
                    width=3,
                    height=4,
                    bad=1,
                ),
                Panel(
                    "Dead letters",
                    "Share of messages that could not be scored. Bad: above 1 %: a producer sends something new.",
                    [
                        (
                            "sum(rate(riskstream_dead_letters_total[$__rate_interval])) "
                            "/ sum(rate(riskstream_events_in_total[$__rate_interval]))",
                            "dead letters",
                        )
                    ],
                    unit="percentunit",
                    kind="stat",
                    width=3,
                    height=4,
                    warn=0.001,
                    bad=0.01,
                ),
                Panel(
                    "Degraded",
                    "Share of scores made without history or without a model. Bad: above 0.",
                    [
                        (
                            'sum(rate(riskstream_flags_total{flag=~"degraded|rules_only"}[$__rate_interval])) / '
                            + SCORED,
                            "degraded",
                        )
                    ],
                    unit="percentunit",
                    kind="stat",
                    width=3,
                    height=4,
                    warn=0.0001,
                    bad=0.01,
                ),
                Panel(
                    "Workers",
                    "Workers that answer Prometheus. Bad: fewer than you started.",
                    [('count(up{job="riskstream"} == 1)', "up")],
                    kind="stat",
                    width=3,
                    height=4,
                    bad=1,
                    less_is_worse=True,
                ),
            ],
        ),
        Row(
            "The last hours",
            [
                Panel(
                    "Events by outcome",
                    "What became of the events. Bad: duplicates or dead letters that were not there yesterday; a gap.",
                    [("sum by (outcome) (rate(riskstream_events_total[$__rate_interval]))", "{{outcome}}")],
                    unit="eps",
                    stacked=True,
                ),
                Panel(
                    "Latency",
                    "Percentiles from source to commit. Bad: p99 over the dashed line. If p50 follows, it is the lag; "
                    "if not, single turns are slow: see the Engine dashboard.",
                    [
                        (
                            f"histogram_quantile({q}, sum by (le) "
                            "(rate(riskstream_event_latency_seconds_bucket[$__rate_interval])))",
                            f"p{100 * q:g}",
                        )
                        for q in (0.5, 0.95, 0.99)
                    ],
                    unit="s",
                    bad=0.5,
                ),
                Panel(
                    "Lag by topic",
                    "Records not yet done. Bad: a line that climbs for minutes: too few workers, a slow Redis, a "
                    "restore.",
                    [("riskstream:consumer_lag_events:sum", "{{topic}}")],
                    bad=10_000,
                ),
                Panel(
                    "Decisions",
                    "Scored events by decision. Bad: a step that no deployment explains.",
                    [("sum by (decision) (rate(riskstream_decisions_total[$__rate_interval]))", "{{decision}}")],
                    unit="eps",
                    stacked=True,
                ),
                Panel(
                    "Latency budget",
                    "Share of events slower than 0.5 s. The budget is 1 %. Bad: 14 % over an hour is a month's budget "
                    "in two days, and pages.",
                    [
                        ("riskstream:slow_events:ratio5m", "5 min"),
                        ("riskstream:slow_events:ratio30m", "30 min"),
                        ("riskstream:slow_events:ratio1h", "1 h"),
                        ("riskstream:slow_events:ratio6h", "6 h"),
                    ],
                    unit="percentunit",
                    warn=0.01,
                    bad=0.144,
                ),
                Panel(
                    "Alerts that fire",
                    "Alerts of deploy/prometheus/rules. Bad: any. The page in docs/runbooks says what to do.",
                    [
                        (
                            'sum by (alertname, severity) (ALERTS{alertname=~"Riskstream.*", alertstate="firing"})',
                            "{{alertname}} {{severity}}",
                        )
                    ],
                    stacked=True,
                ),
            ],
        ),
    ],
)
