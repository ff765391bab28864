"""The demo's face: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stream.alerts import headline, masked, reasons

_BAR_WIDTH = 40
_SHOWN_ALERTS = 5
_PLAIN_EVERY_S = 2.0
_LIVE_EVERY_S = 0.25
_STYLES = {"DECLINE": "bold red", "REVIEW": "yellow", "APPROVE": "green"}
_BAND_STYLES = ("green", "cyan", "yellow", "dark_orange", "red")


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment of the demo."""

    doing: str
    seconds: float
    events: int
    labels: int
    scored: int
    duplicates: int
    dead: int
    alerts: int
    events_per_s: float
    p50_ms: int | None
    p99_ms: int | None
    bands: Mapping[str, int]
    last_alerts: tuple[Mapping[str, Any], ...]

    @property
    def in_flight(self) -> int:
        return self.events - self.scored - self.duplicates - self.dead


class View(Protocol):
    """Shows pictures; decides itself how often."""

    def say(self, text: str) -> None:
        """One line that stays."""
        ...

    def show(self, picture: Picture, *, at_once: bool = False) -> None: ...
    def close(self) -> None:
        """Leaves the last picture standing."""
        ...


class PlainView:
    """A line every two seconds, and the newest alert since the last."""

    def __init__(self) -> None:
        self._next = 0.0
        self._alerts = 0

    def say(self, text: str) -> None:
        print(text, flush=True)

    def show(self, picture: Picture, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        self._next = now + _PLAIN_EVERY_S
        print(
            f"{picture.seconds:5.0f} s  {picture.doing}  {picture.events_per_s:,.0f} events/s  "
            f"latency p50 {_ms(picture.p50_ms)} p99 {_ms(picture.p99_ms)}  {_identity(picture)}  "
            f"{picture.alerts:,} alerts",
            flush=True,
        )
        if picture.alerts > self._alerts and picture.last_alerts:
            alert = picture.last_alerts[-1]
            print(f"         {'  '.join(headline(alert))}: {'; '.join(reasons(alert))}", flush=True)
        self._alerts = picture.alerts

    def close(self) -> None:
        """Nothing stands that must be left."""


class LiveView:
    """A picture that rewrites itself."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        """`console`: where to draw, if not on stdout."""
        self._title = title
        self._console = console or Console(highlight=False)
        self._live: Live | None = None
        self._next = 0.0

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def show(self, picture: Picture, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        self._next = now + _LIVE_EVERY_S
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        self._live.update(self._draw(picture), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, picture: Picture) -> Panel:
        parts: list[RenderableType] = [_figures(picture), Text(), _bands(picture), Text(), _alerts(picture)]
        how = " · Ctrl-C ends it" if picture.doing == "live" else ""
        subtitle = f"{picture.doing} · {picture.seconds:.0f} s{how}"
        return Panel(Group(*parts), title=self._title, subtitle=subtitle, padding=(0, 1))


def _figures(picture: Picture) -> Group:
    table = Table.grid(padding=(0, 3))
    for _ in range(4):
        table.add_column()
    table.add_row(
        Text.assemble((f"{picture.events_per_s:,.0f}", "bold"), " events/s"),
        Text.assemble("latency p50 ", (_ms(picture.p50_ms), "bold")),
        Text.assemble("p99 ", (_ms(picture.p99_ms), "bold")),
        Text.assemble((f"{picture.alerts:,}", "bold"), " alerts", f"   {picture.labels:,} labels"),
    )
    balanced = picture.in_flight >= 0
    return Group(table, Text(_identity(picture), style="green" if balanced else "bold red"))


def _bands(picture: Picture) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(width=_BAR_WIDTH)
    table.add_column(justify="right")
    most = max(picture.bands.values(), default=0)
    for place, (band, count) in enumerate(picture.bands.items()):
        # By the root: a band of a hundredth of the events is still seen.
        width = max(1, round(_BAR_WIDTH * (count / most) ** 0.5)) if count else 0
        style = _BAND_STYLES[min(place, len(_BAND_STYLES) - 1)]
        table.add_row(band, Text("█" * width, style=style), f"{count:,}")
    return table


def _alerts(picture: Picture) -> Table:
    table = Table(box=None, padding=(0, 1), expand=True, show_header=True, header_style="dim")
    for name, options in (
        ("alert", {"width": 7}),
        ("score", {"justify": "right"}),
        ("amount", {"justify": "right"}),
        ("account", {}),
        ("because", {"ratio": 1, "no_wrap": True, "overflow": "ellipsis"}),
    ):
        table.add_column(name, **options)
    rows = [_row(alert) for alert in picture.last_alerts[-_SHOWN_ALERTS:][::-1]]
    for row in rows + [[Text()] * 5] * (_SHOWN_ALERTS - len(rows)):
        table.add_row(*row)
    return table


def _row(alert: Mapping[str, Any]) -> list[Text]:
    decision = str(alert.get("decision", "?")).upper()
    amount = alert.get("amount")
    return [
        Text(decision, style=_STYLES.get(decision, "")),
        Text(str(alert.get("score"))),
        Text(f"{amount:,.2f} {alert.get('currency') or ''}" if isinstance(amount, int | float) else ""),
        Text(masked(alert.get("account_id"))),
        Text("; ".join(reasons(alert))),
    ]


def _identity(picture: Picture) -> str:
    flight = f" + {picture.in_flight:,} in flight" if picture.in_flight else ""
    return (
        f"{picture.events:,} in = {picture.scored:,} scored + {picture.duplicates:,} duplicates "
        f"+ {picture.dead:,} dead{flight}"
    )


def _ms(value: int | None) -> str:
    return "-" if value is None else f"{value:,} ms"
