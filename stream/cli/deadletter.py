"""Look at dead letters, and send them again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.cli.context import JsonOption

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Only these: topic-partition@offset, as list prints them.")
]
Topic = Annotated[str | None, typer.Option(help="Only those from this input: transactions or labels.")]
Partition = Annotated[list[int] | None, typer.Option(min=0, help="Only from this partition; repeatable.")]
Offsets = Annotated[
    str | None, typer.Option(metavar="FIRST:END", help="Only from these offsets of the input, END not included.")
]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Failed at or after: a time (UTC), or an age: 2h, 7d.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Failed before this time or age.")]
Stage = Annotated[list[str] | None, typer.Option(help="Only of this stage: decode, validate; repeatable.")]
Code = Annotated[list[str] | None, typer.Option(help="Only with this code, such as bad_timestamp; repeatable.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Only whose reason contains this.")]
All = Annotated[bool, typer.Option("--all", help="Also those that were redriven already.")]


@app.callback()
def deadletter() -> None:
    """Look at dead letters, and send them again."""


@app.command("list")
def list_(
    ctx: typer.Context,
    ids: Ids = None,
    topic: Topic = None,
    partition: Partition = None,
    offsets: Offsets = None,
    since: Since = None,
    until: Until = None,
    stage: Stage = None,
    code: Code = None,
    reason: Reason = "",
    everything: All = False,
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many, the newest.")] = 50,
    json: JsonOption = False,
) -> None:
    """List the dead letters that nobody has redriven yet, and how many there are by code.

    With --all the others too. Status: open (not redriven), pending (redriven, no worker has got to it), done
    (redriven and scored, or a duplicate), again (redriven and dead again: its newer letter stands for it).
    Keys are masked and values never shown; `show` shows them when asked.

    \b
    Examples:
      riskstream deadletter list --since 24h
      riskstream deadletter list --code bad_timestamp --partition 3 --json
    """
    from stream.cli.deadletters import Chosen, listing

    chosen = Chosen(ids, topic, partition, offsets, since, until, stage, code, reason, everything)
    listing(ctx, chosen, limit=limit, json=json)


@app.command()
def show(
    ctx: typer.Context,
    ids: Ids = None,
    topic: Topic = None,
    partition: Partition = None,
    offsets: Offsets = None,
    since: Since = None,
    until: Until = None,
    stage: Stage = None,
    code: Code = None,
    reason: Reason = "",
    everything: All = False,
    value: Annotated[bool, typer.Option("--value", help="Key, headers and value too, in readable characters.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Only the value's bytes, of one letter.")] = False,
    into: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each value to a file of this folder, named by its ID.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show dead letters one by one: where, when, why, and what became of them.

    The key is masked and the value left out unless --value, --raw or --into asks for them. What --raw and
    --into write can be corrected and given to `redrive --from`.

    \b
    Examples:
      riskstream deadletter show transactions-0@1234 --value
      riskstream deadletter show transactions-0@1234 --raw > letter.json
      riskstream deadletter show --code bad_timestamp --into letters
    """
    from stream.cli.deadletters import Chosen, showing

    chosen = Chosen(ids, topic, partition, offsets, since, until, stage, code, reason, everything or bool(ids))
    showing(ctx, chosen, value=value, raw=raw, into=into, json=json)


@app.command()
def redrive(
    ctx: typer.Context,
    ids: Ids = None,
    topic: Topic = None,
    partition: Partition = None,
    offsets: Offsets = None,
    since: Since = None,
    until: Until = None,
    stage: Stage = None,
    code: Code = None,
    reason: Reason = "",
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE|DIR", help="Send this instead: a file for one ID, or a folder of them."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send. Without it, only show what would be sent.")] = False,
    invalid: Annotated[bool, typer.Option("--invalid", help="Send also what would be a dead letter again.")] = False,
    everything: Annotated[bool, typer.Option("--again", help="Send also what was redriven already.")] = False,
    json: JsonOption = False,
) -> None:
    """Send dead letters again to the topic and partition that they came from.

    Without --yes nothing is sent: it shows what would be, and what would be invalid still. The value is the
    raw bytes again, or those of --from; key and headers stay, and a header says where the message first lay.
    Workers validate it like any message, score it once at its event's own time, and flag it late if the
    account has newer events. An event that was scored meanwhile is a duplicate (its event id is known among
    the account's last 64), and letters that were redriven already are left out, however long ago.

    \b
    Exit codes: 0 done, 2 wrong usage, or no letter has an ID that was given.

    \b
    Examples:
      riskstream deadletter redrive --code future_timestamp --since 2h
      riskstream deadletter redrive --code future_timestamp --since 2h --yes
      riskstream deadletter redrive transactions-0@1234 --from letter.json --yes
      riskstream deadletter redrive --from letters --yes
    """
    from stream.cli.deadletters import Chosen
    from stream.cli.redriving import redriving

    chosen = Chosen(ids, topic, partition, offsets, since, until, stage, code, reason, everything)
    redriving(ctx, chosen, source=source, yes=yes, invalid=invalid, json=json)
