"""The dashboards without a Grafana: as its own model reads them, laid out well, every panel explained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana import build
from stream.reference import metric_facts
from tests.deploy.dashboards import (
    DASHBOARDS,
    ROOT,
    family,
    load,
    metrics_in,
    panel_queries,
    panels,
    resolved,
    rule_queries,
    unread,
    variable_queries,
)

PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
FOREIGN = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
VALUES = {"worker": ".*", "model": ".*", "window": "7d"}
WIDTH = 24


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_there_are_the_four() -> None:
    assert [path.stem for path in DASHBOARDS] == ["data", "engine", "model", "overview"]
    assert len({load(path)["uid"] for path in DASHBOARDS}) == 4


def test_the_files_are_current() -> None:
    assert build.outdated() == [], "run `make dashboards`"


def test_a_file_that_is_not_current_is_found(tmp_path: Path) -> None:
    for name, content in build.rendered().items():
        (tmp_path / name).write_text(content)
    assert build.outdated(tmp_path) == []
    (tmp_path / "data.json").write_text((tmp_path / "data.json").read_text().replace("eps", "short", 1))
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "model.json").unlink()
    assert build.outdated(tmp_path) == ["data.json", "mine.json", "model.json"]


def test_grafanas_own_model_reads_it_and_writes_the_same(dashboard: dict[str, Any]) -> None:
    again = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert again == dashboard


def test_no_panels_overlap_and_none_hangs_over_the_edge(dashboard: dict[str, Any]) -> None:
    assert overlaps(dashboard["panels"]) == []


def overlaps(panels: list[dict[str, Any]]) -> list[str]:
    """Panels that lie on another one, or outside the grid."""
    taken: dict[tuple[int, int], str] = {}
    found = []
    for panel in panels:
        place = panel["gridPos"]
        # The encoder leaves zeros out.
        left, top = place.get("x", 0), place.get("y", 0)
        cells = [(x, y) for x in range(left, left + place["w"]) for y in range(top, top + place["h"])]
        if any(cell in taken or cell[0] >= WIDTH for cell in cells):
            found.append(panel["title"])
        taken |= dict.fromkeys(cells, panel["title"])
    return found


def test_the_check_of_the_layout_can_fail() -> None:
    place = {"h": 2, "w": 12, "x": 0, "y": 0}
    one, two = {"title": "one", "gridPos": place}, {"title": "two", "gridPos": place | {"x": 11}}
    assert overlaps([one, two]) == ["two"]
    assert overlaps([one, {"title": "wide", "gridPos": place | {"x": 13}}]) == ["wide"]
    assert overlaps([one, two | {"gridPos": place | {"x": 12}}]) == []


def test_every_panel_is_whole(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    known_units = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}
    datasource = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    expected = {"type": datasource["type"], "uid": datasource["uid"]}
    for panel in panels(dashboard):
        assert panel["title"]
        assert "Bad: " in panel["description"], f"{panel['title']}: say what bad looks like"
        assert panel["datasource"] == expected
        assert panel["fieldConfig"]["defaults"]["unit"] in known_units, panel["title"]
        assert panel["targets"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for target in panel["targets"]:
            assert target["datasource"] == expected
            assert target["expr"].count("(") == target["expr"].count(")")
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0].get("value") is None
        assert [step["value"] for step in steps[1:]] == sorted(step["value"] for step in steps[1:])
    for variable in dashboard["templating"].get("list", []):
        assert variable["datasource"] == expected


def test_the_overview_begins_with_one_row_that_says_whether_it_is_healthy() -> None:
    first = [
        panel for panel in panels(load(ROOT / "deploy/grafana/dashboards/overview.json")) if panel["gridPos"]["y"] == 1
    ]
    titles = [panel["title"] for panel in first]
    assert titles[:7] == ["Throughput", "Lag", "Latency p99", "Alert rate", "Identity gap", "Dead letters", "Degraded"]
    assert all(panel["type"] == "stat" for panel in first)


def test_queries_name_metrics_that_the_code_declares() -> None:
    """The live test asks the running processes; this one is quick and needs no server."""
    declared = {fact.name for fact in metric_facts()} | FOREIGN
    recorded = {query.place for query in rule_queries() if query.place.startswith("riskstream:")}
    named = {
        metric: query.place
        for query in [*panel_queries(VALUES), *rule_queries()]
        for metric in metrics_in(query.expression)
    }
    named |= {metric: place for place, metric, _ in variable_queries()}
    unknown = {name: place for name, place in named.items() if name not in recorded and family(name) not in declared}
    assert unknown == {}


def test_every_declared_metric_has_a_reader() -> None:
    assert unread({fact.name for fact in metric_facts()}) == set()


def test_a_metric_without_a_reader_is_found() -> None:
    assert unread({"riskstream_luck_total", "riskstream_events_total", "process_open_fds"}) == {"riskstream_luck_total"}


def test_names_and_variables_are_found() -> None:
    text = (
        'sum (rate(riskstream_score_bucket{job="riskstream"}[5m])) / riskstream:alerts:ratio1h + up{a="riskstream_x"}'
    )
    assert metrics_in(text) == {"riskstream_score_bucket", "riskstream:alerts:ratio1h", "up"}
    assert family("riskstream_score_bucket") == "riskstream_score"
    assert resolved('x{i=~"$worker"}[$__rate_interval] ${model}', VALUES) == 'x{i=~".*"}[5m] .*'
    with pytest.raises(KeyError):
        resolved("$nobody", VALUES)


def test_the_provisioned_folder_and_files_are_there() -> None:
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "riskstream.yml").read_text())["providers"][0]
    assert provider["options"]["path"].startswith("/")
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


def test_the_command_checks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.grafana.build", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
