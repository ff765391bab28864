"""What `deadletter redrive` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from stream.app import load_domain
from stream.cli.context import coloured, note, print_json, print_table
from stream.cli.deadletters import Chosen, Found, found, printable
from stream.clock import SystemClock
from stream.deadletters.letter import Place, parse_place
from stream.deadletters.overview import Status
from stream.deadletters.redrive import Planned, Redriver, send
from stream.errors import ConfigError

_SHOWN = 50


def redriving(ctx: typer.Context, chosen: Chosen, *, source: Path | None, yes: bool, invalid: bool, json: bool) -> None:
    """Plans, shows, and sends if told to."""
    corrections: dict[Place, bytes] = {}
    if source is not None:
        corrections = _corrections(source, chosen)
        chosen = replace(chosen, ids=[*map(str, corrections)])
    with found(ctx, chosen, with_values=True) as result:
        planned = _plan(result, corrections)
        sending = [each for each in planned if invalid or each.refusal is None]
        sent = 0
        if yes and sending:
            producer = result.client.plain_producer()
            try:
                sent = send(sending, producer)
            finally:
                producer.close()
        handled = sum(result.overview.by_status[s] for s in (Status.DONE, Status.AGAIN)) if not chosen.everything else 0
        if json:
            print_json(_document(planned, sending, sent, yes, handled))
        else:
            _print(planned, sending, sent, yes, handled)


def _corrections(source: Path, chosen: Chosen) -> dict[Place, bytes]:
    """The values to send instead, by the letter's ID. ConfigError."""
    if source.is_dir():
        if chosen.ids:
            raise ConfigError(f"--from {source}: a folder's files name their IDs; give none beside it")
        files = {parse_place(file.name): file for file in sorted(source.iterdir()) if not file.name.startswith(".")}
        if None in files or not files:
            raise ConfigError(f"--from {source}: each file must be named by an ID, as `deadletter show --into` does")
        return {place: file.read_bytes() for place, file in files.items() if place is not None}
    place = parse_place(chosen.ids[0]) if chosen.ids and len(chosen.ids) == 1 else None
    if place is None:
        raise ConfigError(f"--from {source}: give the one ID whose value the file corrects")
    try:
        return {place: source.read_bytes()}
    except OSError as error:
        raise ConfigError(f"--from {source}: cannot be read ({error.strerror})") from None


def _plan(result: Found, corrections: dict[Place, bytes]) -> list[Planned]:
    settings = result.settings
    topics = settings.topics
    redriver = Redriver(
        load_domain(settings),
        settings.batch,
        transactions=topics.transactions,
        labels=topics.labels,
        partitions=result.partitions,
    )
    pending = [each for each in result.letters if result.overview.status[each.origin] is Status.PENDING]
    letters = [letter for letter in result.letters if letter not in pending] if pending else result.letters
    if pending:
        note(f"{len(pending):,} were redriven a moment ago and wait for a worker; they are left out")
    planned = redriver.plan(letters, corrections, SystemClock().now_ms())
    if len(planned) < len(letters):
        note(f"{len(letters) - len(planned):,} are of other topics than the inputs, and are left out")
    return planned


def _document(
    planned: Sequence[Planned], sending: Sequence[Planned], sent: int, yes: bool, handled: int
) -> dict[str, object]:
    return {
        "dry_run": not yes,
        "fit": len(planned),
        "valid_now": sum(each.refusal is None for each in planned),
        "would_send" if not yes else "sent": sent if yes else len(sending),
        "left_out_redriven_before": handled,
        "letters": [
            {
                "id": str(each.letter.origin),
                "topic": each.letter.origin.topic,
                "partition": each.partition,
                "corrected": each.corrected,
                "keyed_by_account": each.keyed_by_account,
                "sends": each in sending,
                "code": None if each.refusal is None else each.refusal.code,
                "reason": None if each.refusal is None else each.refusal.reason,
            }
            for each in planned
        ],
    }


def _print(planned: Sequence[Planned], sending: Sequence[Planned], sent: int, yes: bool, handled: int) -> None:
    rows = [
        (
            str(each.letter.origin),
            "by key" if each.partition is None else str(each.partition),
            "corrected" if each.corrected else "as it was",
            "valid now" if each.refusal is None else f"still invalid: {each.refusal.reason}",
        )
        for each in planned[:_SHOWN]
    ]
    if rows:
        print_table([tuple(map(printable, row)) for row in rows], ("id", "partition", "value", "would be"))
    if len(planned) > _SHOWN:
        print(f"... and {len(planned) - _SHOWN:,} more")
    invalid = Counter(each.refusal.code for each in planned if each.refusal is not None)
    if invalid:
        codes = ", ".join(f"{count:,} {code}" for code, count in invalid.most_common())
        kept = "are sent all the same" if len(sending) == len(planned) else "stay; correct them (--from) or --invalid"
        print(f"{invalid.total():,} still invalid ({codes}): they {kept}")
    strays = sum(not each.keyed_by_account for each in sending)
    if strays:
        print(f"{coloured('note:', 'warning')} the key of {strays:,} is not their account: a wrongly keyed source?")
    if handled:
        print(f"{handled:,} were redriven before and are left out; --again sends them too")
    if yes:
        print(f"{sent:,} sent; `deadletter list --all` shows what becomes of them")
    else:
        print(f"{len(sending):,} would be sent; nothing was. --yes sends them")
