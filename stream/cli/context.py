"""What commands share: settings from the command line, plain output, JSON, errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for a machine.")]

_RED, _YELLOW, _GREEN, _DIM, _RESET = "\033[31m", "\033[33m", "\033[32m", "\033[2m", "\033[0m"
COLOURS = {"error": _RED, "warning": _YELLOW, "ok": _GREEN, "dim": _DIM}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The global options. `overrides`: dotted field -> text."""

    config_file: Path | None
    overrides: Mapping[str, str]
    debug: bool


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """`kafka.group=fraud` as {"kafka.group": "fraud"}; typer.BadParameter for another form."""
    overrides = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{word!r}: write NAME=VALUE, such as kafka.group=fraud", param_hint="--set")
        overrides[name.strip()] = value
    return overrides


def complain(message: str) -> None:
    """One error on stderr; red on a terminal."""
    sys.stdout.flush()
    print(f"{coloured('error:', 'error', sys.stderr)} {message}", file=sys.stderr)


def note(message: str) -> None:
    """Something for a person, on stderr: it never mixes with what a machine reads."""
    print(message, file=sys.stderr)


def coloured(text: str, kind: str, stream: Any = None) -> str:
    """The text in the colour of a kind of COLOURS, if the stream (stdout) is a terminal that wants colours."""
    stream = sys.stdout if stream is None else stream
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{COLOURS[kind]}{text}{_RESET}" if wanted else text


def print_json(document: Any) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(document, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Aligned columns on stdout, the last one ragged."""
    table = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
    for place, row in enumerate(table):
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip()
        print(coloured(line, "dim") if header and place == 0 else line)


def end_with(ok: bool) -> None:
    """Ends the command: exit code 0, or 1 for a check that did not hold."""
    if not ok:
        raise typer.Exit(1)
