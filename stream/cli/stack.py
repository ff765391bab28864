"""Run a local Kafka and Redis, for first steps and development."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.context import JsonOption, end_with, note, print_json, print_table
from stream.stack import LocalStack, StackStatus

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

NameOption = Annotated[str, typer.Option(help="Name of the stack: several can run side by side.")]
_VARIABLES = {"kafka": "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS", "redis": "RISKSTREAM_REDIS__URL"}


@app.callback()
def stack() -> None:
    """Start, end and find a local Kafka and Redis. They listen on free loopback ports only."""


@app.command()
def up(
    kafka: Annotated[str, typer.Option(help="embedded (no Java) or apache (Java and Maven).")] = "embedded",
    redis: Annotated[
        str | None, typer.Option(help="server (the installed redis-server) or embedded; default: what is there.")
    ] = None,
    name: NameOption = "default",
    json: JsonOption = False,
) -> None:
    """Start the servers and wait until they answer. They go on running until `stack down`.

    The lines on stdout set the environment for the other commands; everything else goes to stderr.
    A stack that runs already is left as it is.

    The embedded broker is for small tries: it answers a fetch with all that a partition has. Where that
    is 100 MB or more, take apache, or set kafka.fetch_max_bytes to more than that.

    \b
    Examples:
      eval "$(riskstream stack up)"
      riskstream stack up --kafka apache --name big
    """
    status = LocalStack(name).up(kafka, redis)
    if json:
        print_json(_document(status))
        return
    for server in status.servers:
        note(f"{server.role} ({server.kind}) answers on {server.address}, pid {server.pid}, log {server.log}")
    for variable, address in _environment(status).items():
        print(f"export {variable}={address}")


@app.command()
def down(
    name: NameOption = "default",
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete the servers' data too.")] = False,
    json: JsonOption = False,
) -> None:
    """End the servers. Their data stay for the next `stack up`, unless --wipe.

    \b
    Example:
      riskstream stack down --wipe
    """
    ended = LocalStack(name).down(wipe=wipe)
    if json:
        print_json({"name": name, "ended": [server.role for server in ended], "wiped": wipe})
        return
    print(f"ended: {', '.join(server.role for server in ended)}" if ended else "nothing was running")


@app.command()
def status(name: NameOption = "default", json: JsonOption = False) -> None:
    """Show what runs and where. Exit code 0 if both servers run, else 1.

    \b
    Example:
      riskstream stack status --json
    """
    found = LocalStack(name).status()
    if json:
        print_json(_document(found))
    elif found.servers:
        rows = [
            (s.role, s.kind, "runs" if s.process else "ended", s.address if s.process else "", s.log)
            for s in found.servers
        ]
        print_table(rows, ("server", "kind", "state", "address", "log"))
    else:
        print("no stack of this name: start one with `riskstream stack up`")
    end_with(found.running)


def _environment(status: StackStatus) -> dict[str, str]:
    known = {variable: status.address(role) for role, variable in _VARIABLES.items()}
    return {variable: address for variable, address in known.items() if address is not None}


def _document(status: StackStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "running": status.running,
        "servers": [
            {
                "role": server.role,
                "kind": server.kind,
                "running": server.process is not None,
                "address": server.address,
                "pid": server.pid,
                "data": server.data,
                "log": server.log,
            }
            for server in status.servers
        ],
        "environment": _environment(status),
    }
