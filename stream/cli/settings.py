"""Settings for commands. A module of its own: what reads no settings does not pay for pydantic."""

from __future__ import annotations

import os

import typer

from stream.cli.context import CommandLine
from stream.config import Loaded, Settings, load_settings


def loaded_from(ctx: typer.Context, **more: object) -> Loaded:
    """Settings by the global options. `more` are a command's own options, dots written as two underscores;
    None means not given. ConfigError."""
    line: CommandLine = ctx.find_object(CommandLine) or CommandLine(None, {}, False)
    options = {name.replace("__", "."): value for name, value in more.items() if value is not None}
    return load_settings(line.config_file, os.environ, {**line.overrides, **options})


def settings_from(ctx: typer.Context, **more: object) -> Settings:
    """`loaded_from` without the origins."""
    return loaded_from(ctx, **more).settings
