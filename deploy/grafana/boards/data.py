"""Data: what the producers send."""

from __future__ import annotations

from deploy.grafana.boards.queries import DUPLICATE, LATE, MINE, SCORED_HERE, WORKER, rate_of
from deploy.grafana.panels import Board, Panel, Row

BOARD = Board(
    uid="riskstream-data",
    title="riskstream / Data",
    description="What the producers send.",
    variables=[WORKER],
    rows=[
        Row(
            "Messages that cannot be scored",
            [
                Panel(
                    "Dead letters by reason",
                    "Bad: a reason that was not there yesterday: a producer has changed.",
                    [(rate_of("riskstream_dead_letters_total", "reason"), "{{reason}}")],
                    unit="eps",
                    stacked=True,
                    width=12,
                ),
                Panel(
                    "Dead letters by stage",
                    "decode: no JSON object; validate: an object, but no valid event. Bad: more than 1 % of the events.",
                    [
                        (
                            f"{rate_of('riskstream_dead_letters_total', 'stage')} "
                            f"/ scalar({rate_of('riskstream_events_in_total')} > 0)",
                            "{{stage}}",
                        )
                    ],
                    unit="percentunit",
                    bad=0.01,
                    width=12,
                ),
            ],
        ),
        Row(
            "Messages that can",
            [
                Panel(
                    "Events by partition",
                    "Bad: one partition far above the others: keys are unevenly spread, or one account floods.",
                    [(rate_of("riskstream_events_in_total", "partition"), "{{partition}}")],
                    unit="eps",
                ),
                Panel(
                    "Duplicates",
                    "Share of events that repeat an id of their account. Bad: above 1 %: a producer retries without "
                    "idempotence.",
                    [
                        (
                            f"{rate_of('riskstream_events_total', '', DUPLICATE)} "
                            f"/ {rate_of('riskstream_events_in_total')}",
                            "duplicates",
                        )
                    ],
                    unit="percentunit",
                    warn=0.01,
                ),
                Panel(
                    "Late",
                    "Share of scores of an event older than its account's newest. Bad: rising: a producer is behind, or "
                    "its clock is.",
                    [
                        (
                            f"{rate_of('riskstream_flags_total', '', LATE)} "
                            f"/ scalar({rate_of('riskstream_events_total', '', SCORED_HERE)} > 0)",
                            "late",
                        )
                    ],
                    unit="percentunit",
                    warn=0.01,
                ),
                Panel(
                    "Missing fields",
                    "Share of valid events without an optional field. Bad: a jump: features that need it are gone.",
                    [
                        (
                            f"{rate_of('riskstream_missing_fields_total', 'field')} "
                            f"/ scalar({rate_of('riskstream_events_in_total')} > 0)",
                            "{{field}}",
                        )
                    ],
                    unit="percentunit",
                    maximum=1,
                ),
                Panel(
                    "Flags",
                    "Reservations on scores. Bad: no_rate: a currency without a rate; cold: the log lacked history; "
                    "saturated: accounts with very many events.",
                    [(rate_of("riskstream_flags_total", "flag"), "{{flag}}")],
                    unit="eps",
                ),
            ],
        ),
        Row(
            "Labels",
            [
                Panel(
                    "Labels by outcome",
                    "Bad: none for days; or dead letters: the feed's format has changed.",
                    [(f"sum by (outcome) (increase(riskstream_labels_total{{{MINE}}}[1h]))", "{{outcome}}")],
                    width=12,
                ),
                Panel(
                    "What became of scores and labels in riskstream quality",
                    "Bad: unmatched labels: their events were never scored, or they name another time; unreadable ones.",
                    [
                        (
                            "sum by (kind, outcome) (rate(riskstream_quality_records_total[$__rate_interval]))",
                            "{{kind}} {{outcome}}",
                        )
                    ],
                    unit="eps",
                    width=12,
                ),
            ],
        ),
    ],
)
