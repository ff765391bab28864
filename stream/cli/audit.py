"""Prove from the topics that every event got exactly one outcome."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated

import typer

from stream.audit import MEANINGS, Auditor, AuditReport
from stream.cli.context import JsonOption, coloured, end_with, print_json, print_table
from stream.cli.progress import Steps

# A commit shows in the group's offsets a moment before it does in the outputs.
_SETTLE_S = 0.3

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def audit(
    ctx: typer.Context,
    json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="SCORES.parquet", help="Write a row per score too: origin, probability, decision, ..."),
    ] = None,
) -> None:
    """Prove from the topics that every event got exactly one outcome.

    Reads the inputs and the outputs from their beginning, with code of its own, and compares: every event of
    the transactions topic must have one score, or one dead letter, or repeat one of its account's last 64
    events. Scores must name their event rightly and keep an account's order; every suspicious score has one
    alert. Events that the group has not committed yet are pending: run it again when the workers have caught
    up.

    \b
    Exit codes: 0 all holds, 1 something does not (the problems say what, and where: topic-partition@offset).

    \b
    Examples:
      riskstream audit
      riskstream audit --json --out scores.parquet
    """
    from stream.cli.connection import admin_of, connect, reader_of
    from stream.cli.settings import settings_from
    from stream.kafka.port import TopicPartition
    from stream.topics import partition_counts

    settings = settings_from(ctx)
    client = connect(settings)
    with contextlib.ExitStack() as cleanup:
        admin = cleanup.enter_context(admin_of(client))
        counts = partition_counts(admin, settings)
        transactions = settings.topics.transactions
        partitions = [TopicPartition(transactions, number) for number in range(counts[transactions])]
        committed = admin.last_committed(settings.kafka.group, partitions)
        time.sleep(_SETTLE_S)
        sink = None
        if out is not None:
            from stream.cli.score_table import ScoreTable

            sink = cleanup.enter_context(ScoreTable(out))
        auditor = Auditor(
            cleanup.enter_context(reader_of(client)),
            settings.topics,
            counts,
            committed={tp.partition: offset.offset for tp, offset in committed.items()},
            sink=sink,
            progress=cleanup.enter_context(Steps()).show,
        )
        report = auditor.run()
    if json:
        print_json(report.as_json())
    else:
        _print(report)
    end_with(report.identity_holds and report.exactly_once)


def _print(report: AuditReport) -> None:
    names = ("events", "scored", "duplicates", "dead", "pending", "lost")
    rows = [(str(c.partition), *(f"{getattr(c, name):,}" for name in names)) for c in report.partitions]
    print_table([*rows, ("all", *(f"{report.total(name):,}" for name in names))], ("partition", *names))
    print(f"{report.alerts:,} alerts, {report.labels_dead:,} dead letters of labels")
    if report.redriven["events"]:
        redriven = report.redriven
        print(
            f"{redriven['events']:,} of the events were redriven: {redriven['scored']:,} scored, "
            f"{redriven['duplicates']:,} duplicates, {redriven['dead']:,} dead again"
        )
    for text in report.notes:
        print(f"{coloured('note:', 'warning')} {text}")
    for problem, found in report.findings.counts.items():
        places = ", ".join(report.findings.examples[problem])
        print(f"{coloured(problem, 'error')}: {found:,} ({MEANINGS[problem]}), such as {places}")
    for text, holds in (
        ("events = scored + duplicates + dead", report.identity_holds),
        ("every event exactly once", report.exactly_once),
    ):
        print(f"{text}: {coloured('yes', 'ok') if holds else coloured('NO', 'error')}")
