"""The dashboards as Grafana reads them: panels, queries with their variables resolved, the metrics they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
RULES = ROOT / "deploy" / "prometheus" / "rules" / "riskstream.yml"
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))

BUILT_IN = {"__rate_interval": "5m", "__interval": "15s", "__range": "1h"}
"""Grafana makes the first of them 1 m here; longer, so that a slow machine's traffic is still in it."""

FOREIGN = re.compile(r"(process|python|up|scrape|ALERTS|prometheus|go|net|promhttp)(_|$)")
"""Metrics that come with the client library or with Prometheus; nobody has to look at them."""
METRIC = re.compile(r"(?<![\w:\"'])(?:riskstream|process|up|ALERTS)(?:[_:][\w:]*)?(?![\w:\"'=])")
SUFFIXES = ("_bucket", "_count", "_sum")


class Query(NamedTuple):
    """One PromQL expression and where it stands."""

    place: str
    expression: str


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels but the rows' headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def resolved(expression: str, variables: dict[str, str]) -> str:
    """The expression as Grafana sends it. KeyError for a variable that the dashboard does not have."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: (BUILT_IN | variables)[found.group(1)], expression)


def panel_queries(values: dict[str, str]) -> Iterator[Query]:
    """Every panel's queries; `values` are of the variables, by name."""
    for path in DASHBOARDS:
        dashboard = load(path)
        own = {variable["name"]: values[variable["name"]] for variable in dashboard["templating"].get("list", [])}
        for panel in panels(dashboard):
            for target in panel["targets"]:
                place = f"{path.stem}: {panel['title']} {target['refId']}"
                yield Query(place, resolved(target["expr"], own))


def variable_queries() -> Iterator[tuple[str, str, str]]:
    """(place, metric, label) of every `label_values(metric, label)`."""
    for path in DASHBOARDS:
        for variable in load(path)["templating"].get("list", []):
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
            assert found is not None, variable["query"]
            yield f"{path.stem}: ${variable['name']}", found.group(1), found.group(2)


def rule_queries() -> Iterator[Query]:
    """The expressions of the alerts and of the recorded series."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield Query(rule.get("alert") or rule["record"], rule["expr"])


def runbook_blocks(kind: str) -> Iterator[Query]:
    """The lines of the blocks of a kind under "How to look", of every runbook."""
    for page in RUNBOOKS:
        part = page.read_text(encoding="utf-8").partition("## How to look")[2].partition("## What to do")[0]
        for body in re.findall(rf"^```{kind}\n(.*?)^```", part, re.MULTILINE | re.DOTALL):
            yield from (Query(page.name, line) for line in body.splitlines())


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics in an expression."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))


def family(sample: str) -> str:
    """The metric that a sample name belongs to: without a histogram's suffix."""
    return next((sample.removesuffix(suffix) for suffix in SUFFIXES if sample.endswith(suffix)), sample)


def unread(exported: set[str]) -> set[str]:
    """Metrics of ours in no panel, no alert, no sentence of the documents. Generated tables do not count.

    A new metric that shows up here wants a panel in deploy/grafana/boards, an alert, or a sentence in docs/.
    """
    every = dict.fromkeys(("worker", "model", "window"), ".*")
    read = {family(name) for query in [*panel_queries(every), *rule_queries()] for name in metrics_in(query.expression)}
    for page in (ROOT / "docs").rglob("*.md"):
        text = re.sub(r"<!-- generated.*?<!-- end of", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        read |= set(re.findall(r"\briskstream_\w+", text))
    return {name for name in exported if not FOREIGN.match(name)} - read
