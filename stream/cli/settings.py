"""Settings for commands. A module of its own: what reads no settings does not pay for pydantic."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import typer

from stream.cli.context import CommandLine, note
from stream.config import Loaded, Settings, load_settings

_SECRETS = frozenset({"kafka.sasl_password", "redis.key_secret"})


def loaded_from(ctx: typer.Context, **more: object) -> Loaded:
    """Settings by the global options. `more` are a command's own options, dots written as two underscores;
    None means not given. ConfigError."""
    line: CommandLine = ctx.find_object(CommandLine) or CommandLine(None, {}, False)
    if exposed := [name for name, value in line.overrides.items() if _is_secret(name, value)]:
        variables = ", ".join("RISKSTREAM_" + name.replace(".", "__").upper() for name in exposed)
        note(f"warning: --set {', '.join(exposed)}: whoever may list processes can read it; better use {variables}")
    options = {name.replace("__", "."): value for name, value in more.items() if value is not None}
    return load_settings(line.config_file, os.environ, {**line.overrides, **options})


def _is_secret(name: str, value: str) -> bool:
    """Whether it should not stand in a command line: a password, or a URL with one."""
    if name == "redis.url":
        parts = urlsplit(value)
        return bool(parts.password) or "pass" in parts.query
    return name in _SECRETS


def settings_from(ctx: typer.Context, **more: object) -> Settings:
    """`loaded_from` without the origins."""
    return loaded_from(ctx, **more).settings
