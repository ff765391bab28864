"""The root command: global options, the lazy table of commands, and how errors end the process.

A command is known by its name and its module; the module is imported when the command is called or asked
for its own help. So one command never pays for another's imports. Other packages add commands through the
entry point group `riskstream.commands`, each a `typer.Typer`.
"""

from __future__ import annotations

import ast
import importlib
import sys
import traceback
from collections.abc import Iterator, MutableMapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import typer.core

from stream.cli.context import CommandLine, complain, parse_overrides
from stream.errors import RiskstreamError

ENTRY_POINTS = "riskstream.commands"

COMMANDS = (
    "demo",
    "run",
    "score",
    "stack",
    "topics",
    "simulate",
    "replay",
    "alerts",
    "audit",
    "quality",
    "deadletter",
    "bundle",
    "model",
    "state",
    "rights",
    "doctor",
    "size",
    "config",
    "version",
)
_HOISTED = {"--config": 1, "--set": 1, "--debug": 0}


class LazyCommands(MutableMapping[str, Any]):
    """Command name -> command. Looking one up imports its module; iterating does not."""

    def __init__(self) -> None:
        self._places = {name: f"stream.cli.{name}:app" for name in COMMANDS}
        for point in entry_points(group=ENTRY_POINTS):
            self._places.setdefault(point.name, point.value)
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module, _, attribute = self._places[name].partition(":")
            self._loaded[name] = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __setitem__(self, name: str, command: Any) -> None:
        self._places.setdefault(name, "")
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]
        self._loaded.pop(name, None)

    def summary(self, name: str) -> str:
        """The first line of the module's docstring, read without importing the module."""
        spec = find_spec(self._places[name].partition(":")[0])
        if spec is None or spec.origin is None:
            return ""
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
        return text.partition("\n")[0]


class LazyGroup(typer.core.TyperGroup):
    """A group whose help and suggestions import no command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._lazy = LazyCommands()
        self.commands = cast("dict[str, Any]", self._lazy)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._lazy)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._lazy.summary(name)) for name in self._lazy])


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings file (YAML); else $RISKSTREAM_CONFIG.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One setting, such as kafka.group=fraud. Repeatable."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Streaming fraud and risk scoring: exactly-once scores and alerts from Kafka events.

    \b
    First steps:
      riskstream demo                     everything on this machine, with simulated payments
      riskstream stack up                 a local Kafka and Redis to try things on
      riskstream topics create            the five topics
      riskstream run --bundle DIR         one worker

    Settings come from defaults, then the file, then the environment
    (RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS), then --set; `riskstream config` shows what counts and why. The
    three options below may stand anywhere on the line.

    \b
    Exit codes: 0 done, 1 failed or a check did not hold, 2 wrong usage or settings, 130 interrupted;
    9 to 18 are a worker's fatal errors (riskstream run --help).
    """
    ctx.obj = CommandLine(config, parse_overrides(override or []), debug)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process."""
    words = _hoist(list(sys.argv[1:] if arguments is None else arguments))
    command = typer.main.get_command(app)
    try:
        command.main(words, prog_name="riskstream")
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        complain(str(error) if isinstance(error, RiskstreamError) else _unexpected(error))
        sys.exit(error.exit_code if isinstance(error, RiskstreamError) else 1)


def _hoist(words: list[str]) -> list[str]:
    """Moves the global options to the front, so that they may stand behind the command too."""
    front: list[str] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name = word.partition("=")[0]
        if word == "--":
            rest += [word, *waiting]
        elif name in _HOISTED:
            front.append(word)
            if _HOISTED[name] and "=" not in word:
                front += [value for value in [next(waiting, None)] if value is not None]
        else:
            rest.append(word)
    return front + rest


def _unexpected(error: Exception) -> str:
    """Kind and place only: the text of a foreign error may hold a value of an event."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place}; --debug shows the whole of it"
