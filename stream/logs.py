"""Logs: one line per event on stderr, JSON unless a person watches a terminal. Set up once per process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from stream.config import LogSettings

HIDDEN = frozenset(
    {"account", "account_id", "accounts", "card", "card_id", "device_id", "event_id", "ip", "password", "terminal_id"}
)
"""Fields whose values never reach a log, whoever passes them."""


def hide_identities(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The last guard: a value under a name of `HIDDEN` is replaced."""
    for name in HIDDEN.intersection(event):
        event[name] = "[hidden]"
    return event


def configure_logs(settings: LogSettings, *, stream: TextIO | None = None, **fixed: object) -> None:
    """Directs structlog and the standard library's logging to `stream` (stderr), in one format.

    `fixed` fields stand in every line (the worker's id). Calling it again replaces the set-up.
    """
    target = stream if stream is not None else sys.stderr
    json_lines = settings.format == "json" or (settings.format == "auto" and not target.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Processor] = [
        _adding(fixed),
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        hide_identities,
    ]
    renderer: list[Processor] = [structlog.dev.ConsoleRenderer(colors=target.isatty())]
    if json_lines:
        renderer = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _adding(fixed: Mapping[str, object]) -> Processor:
    """Not context variables: those are per thread, and clients' threads log too."""

    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {**fixed, **event}

    return add
