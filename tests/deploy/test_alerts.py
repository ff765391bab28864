"""The alerts of deploy/prometheus: good rules, a case that fires and one that does not for each, a runbook for each."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.stack import PrometheusServer
from tests.conftest import require

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "rules" / "riskstream.yml"
CASES = sorted((FOLDER / "tests").glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"


def document(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    rules = [rule for group in document(RULES)["groups"] for rule in group["rules"] if "alert" in rule]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    return {rule["alert"]: rule for rule in rules}


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    require(PrometheusServer)
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)


def test_rules_and_configuration_are_good() -> None:
    for what, path in (("rules", RULES), ("config", FOLDER / "prometheus.yml")):
        checked = promtool("check", what, path)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_every_alert_fires_when_it_should_and_only_then(cases: Path) -> None:
    tested = promtool("test", "rules", cases)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    asked = [case for path in CASES for test in document(path)["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in asked if case["exp_alerts"]}
    silent = {case["alertname"] for case in asked if not case["exp_alerts"]}
    assert fires == silent == set(alerts())


@pytest.mark.parametrize(
    ("alert", "rule", "spoilt"),
    [
        ("IdentityGap", "!= 0", "> 1"),
        ("RedisMemory", "> 0.85", "> 0.95"),
        ("RestoreStuck", "for: 10m", "for: 1m"),
        ("LagGrowing", "[10m]) > 0", "[10m]) > -1e9"),
        ("ScoresDegraded", "degraded|rules_only", ".*"),
        ("ModelReviewDue", 'role="champion"', 'role!=""'),
    ],
)
def test_the_cases_can_fail(alert: str, rule: str, spoilt: str, tmp_path: Path) -> None:
    before, name, rest = RULES.read_text(encoding="utf-8").partition(f"- alert: Riskstream{alert}\n")
    assert rule in rest.partition("- alert:")[0]
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / RULES.name).write_text(before + name + rest.replace(rule, spoilt, 1), encoding="utf-8")
    cases = document(FOLDER / "tests" / "riskstream.yml")
    cases["tests"] = [
        test
        for test in cases["tests"]
        if any(case["alertname"] == f"Riskstream{alert}" for case in test["alert_rule_test"])
    ]
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "cases.yml").write_text(yaml.safe_dump(cases), encoding="utf-8")
    assert promtool("check", "rules", tmp_path / "rules" / RULES.name).returncode == 0
    assert promtool("test", "rules", tmp_path / "tests" / "cases.yml").returncode != 0


def test_an_alert_says_how_urgent_it_is_what_is_wrong_and_what_to_do() -> None:
    pages = set()
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"]["summary"], name
        page = ROOT / rule["annotations"]["runbook"]
        assert page.parent == RUNBOOKS, name
        text = page.read_text(encoding="utf-8")
        assert f"`{name}` ({rule['labels']['severity']})" in text, name
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["What it means", "How to look", "What to do"], page.name
        assert re.search(r"```(promql)?\n", text.partition("## How to look")[2]), page.name
        index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
        assert re.search(rf"^\| `{name}` \| {rule['labels']['severity']} \| .*\({page.name}\) \|$", index, re.MULTILINE)
        pages.add(page.name)
    assert {path.name for path in RUNBOOKS.glob("*.md")} == pages | {"README.md"}, "a page that no alert names"
