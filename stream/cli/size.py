"""How many workers, partitions and bytes a load needs."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Annotated

import typer

from stream.cli.context import JsonOption, note, print_json, print_table
from stream.errors import ConfigError
from stream.sizing import Assumptions, size

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_GIB, _TIB = 2**30, 2**40


@app.command()
def show(
    rate: Annotated[float, typer.Option(help="Events per second at the peak.")],
    accounts: Annotated[int, typer.Option(help="Accounts that exist.")],
    assume: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Another assumption, such as worker_us=90.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """How many workers, partitions and bytes a load needs.

    A paper estimate: its assumptions are printed beside it, and docs/tuning.md says how each was measured.
    Replace those that you have measured on your machines: `make bench`, or `riskstream run --profile`.

    \b
    Examples:
      riskstream size --rate 2000 --accounts 5000000
      riskstream size --rate 20000 --accounts 5000000 --assume worker_us=90 --assume utilisation=0.5
    """
    assumed = _assumptions(assume or [])
    try:
        found = size(rate, accounts, assumed)
    except ValueError as error:
        raise ConfigError(f"--rate, --accounts: {error}") from None
    if json:
        print_json({"rate": rate, "accounts": accounts, **asdict(found), "assumptions": asdict(assumed)})
        return
    print_table(
        [
            (
                "workers",
                f"{found.workers:,}, one core each ({found.worker_cores:.2f} cores at {assumed.utilisation:.0%})",
            ),
            ("partitions", f"{found.partitions:,}: fixed for good, so with room to double the workers"),
            ("memory of a worker", f"{found.worker_bytes / _GIB:.1f} GiB"),
            ("  state.arena_accounts", f"{found.arena_accounts:,}"),
            ("  state.arena_entities", f"{found.arena_entities:,} of each kind"),
            ("Redis", f"{found.redis_bytes / _GIB:,.1f} GiB of rows, {found.redis_cores:.2f} cores"),
            ("Kafka", f"{found.kafka_bytes / _TIB:,.2f} TiB in 3 replicas, {found.broker_cores:.2f} cores"),
        ]
    )
    for warning in found.warnings:
        note(f"note: {warning}")
    print("\nassumed:")
    print_table([(f"  {field.name}", f"{getattr(assumed, field.name):,g}") for field in fields(Assumptions)])


def _assumptions(words: list[str]) -> Assumptions:
    assumed = Assumptions()
    known = {field.name for field in fields(Assumptions)}
    for word in words:
        name, _, number = word.partition("=")
        if name not in known:
            raise ConfigError(f"--assume {word}: no assumption {name!r}; there are: {', '.join(sorted(known))}")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise ConfigError(f"--assume {word}: write a number above 0, such as {name}=100")
        assumed = replace(assumed, **{name: value})
    return assumed
