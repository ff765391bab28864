"""What our panels have in common, and how a list of them becomes a dashboard. A panel is a declaration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = "riskstream-prometheus"
WIDTH = 24

Builder = stat.Panel | timeseries.Panel | heatmap.Panel | bargauge.Panel | table.Panel
_KINDS: dict[str, type[Builder]] = {
    "stat": stat.Panel,
    "graph": timeseries.Panel,
    "heatmap": heatmap.Panel,
    "bars": bargauge.Panel,
    "table": table.Panel,
}
_GREEN, _YELLOW, _RED = "green", "yellow", "red"


@dataclass(frozen=True)
class Panel:
    """One panel. `queries`: (PromQL, legend). `description` says what bad looks like."""

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "graph"
    width: int = 8
    height: int = 8
    warn: float | None = None
    """From here on yellow, or, where less is worse, below it."""
    bad: float | None = None
    less_is_worse: bool = False
    stacked: bool = False
    maximum: float | None = None


@dataclass(frozen=True)
class Row:
    """A heading, and the panels below it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the dashboard: the values of a label."""

    name: str
    label: str
    query: str
    many: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()
    window: str = "now-3h"


def build(board: Board) -> models.Dashboard:
    """The dashboard in Grafana's own model, rows below each other, panels numbered from 1."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["riskstream"])
        .time(board.window, "now")
        .refresh("30s")
        .timezone("browser")
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("riskstream")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["riskstream"])
            .keep_time(True)
        )
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    number, top = 1, 0
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=top)))
        number, left, top, lowest = number + 1, 0, top + 1, top + 1
        for panel in row.panels:
            if left + panel.width > WIDTH:
                left, top = 0, lowest
            place = models.GridPos(h=panel.height, w=panel.width, x=left, y=top)
            made = made.with_panel(_panel(panel).id(number).grid_pos(place))
            left, lowest = left + panel.width, max(lowest, top + panel.height)
            number += 1
        top = lowest
    return made.build()


def _source() -> models.DataSourceRef:
    return models.DataSourceRef(type_val="prometheus", uid=DATASOURCE)


def _variable(variable: Variable) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_source())
        .query(variable.query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    return made.multi(True).include_all(True).all_value(".*") if variable.many else made


def _panel(panel: Panel) -> Builder:
    made = _KINDS[panel.kind]().title(panel.title).description(panel.description).datasource(_source())
    made = made.unit(panel.unit).thresholds(_thresholds(panel))
    for place, (expression, legend) in enumerate(panel.queries):
        made = made.with_target(_target(panel, expression, legend, chr(ord("A") + place)))
    if panel.kind in ("graph", "bars"):
        made = made.min(0)
    if panel.maximum is not None:
        made = made.max(panel.maximum)
    if isinstance(made, timeseries.Panel):
        made = (
            made.fill_opacity(30 if panel.stacked else 5)
            .line_width(1)
            .legend(
                common.VizLegendOptions()
                .display_mode(common_models.LegendDisplayMode.LIST)
                .placement(common_models.LegendPlacement.BOTTOM)
                .show_legend(True)
            )
        )
        if panel.stacked:
            made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
        if panel.bad is not None:
            made = made.thresholds_style(
                common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
            )
    if isinstance(made, stat.Panel | bargauge.Panel):
        made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return made


def _target(panel: Panel, expression: str, legend: str, ref: str) -> Dataquery:
    target = Dataquery().expr(expression).legend_format(legend).ref_id(ref).datasource(_source())
    if panel.kind == "heatmap":
        return target.range().format(PromQueryFormat.HEATMAP)
    if panel.kind == "table":
        return target.instant().format(PromQueryFormat.TABLE)
    return target.instant() if panel.kind == "bars" else target.range()


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    """Green, then yellow, then red as the value rises; the other way round where less is worse."""
    if panel.less_is_worse:
        bad = panel.bad if panel.bad is not None else panel.warn
        steps = [models.Threshold(value=None, color=_RED if panel.bad is not None else _GREEN)]
        if panel.bad is not None and panel.warn is not None:
            steps.append(models.Threshold(value=panel.bad, color=_YELLOW))
        top = panel.warn if panel.warn is not None else bad
        if top is not None:
            steps.append(models.Threshold(value=top, color=_GREEN))
    else:
        steps = [models.Threshold(value=None, color=_GREEN)]
        for value, colour in ((panel.warn, _YELLOW), (panel.bad, _RED)):
            if value is not None:
                steps.append(models.Threshold(value=value, color=colour))
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
