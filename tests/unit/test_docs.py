"""The documents say nothing that the code does not: links, commands, settings, metrics, examples, generated tables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from stream import reference
from stream.app import load_domain
from stream.cli.root import LazyCommands
from stream.config import ENV_PREFIX, OTHER_VARIABLES, BatchSettings, Settings, load_settings
from stream.decisions.attribution import FeatureGroups
from stream.decisions.policy import Band, Condition, Policy, Rule, Scale, Thresholds, ValueList, load_policy
from stream.decisions.reasons import Explainer
from stream.domains.payments import DOMAIN
from stream.events.decoder import Decoder
from stream.features.assemble import FeatureState
from stream.features.columns import ColumnBuilder
from stream.features.money import Rates
from stream.history.batch import WireContract
from stream.history.mapping import CsvOptions, LabelSource, Mapping, NumberSource, TextSource, TimeSource, load_mapping
from stream.kafka.memory.log import MemoryRecord

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GLOBAL_OPTIONS = {"--config": 1, "--set": 1, "--debug": 0, "--help": 0}
SETTINGS = {setting.field for setting in load_settings(None, {}, {}).describe()}
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}
METRICS = {fact.name for fact in reference.metric_facts()}

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def code(text: str) -> list[str]:
    """Every line of the plain blocks, and every piece of code within a sentence."""
    lines = [line for body in blocks(text, "") for line in body.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The names that the headings of a page have as link targets."""
    titles = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(FENCE.sub("", read(page))):
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(read(target))):
            broken.append(link)
    return broken


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every call of `riskstream` that a page shows, without the program's name."""
    for piece in code(text):
        for found in re.finditer(r"(?:^|[\s(])riskstream ((?:-{0,2}[\w\[])[^|)&>#]*)", piece):
            yield shlex.split(found.group(1).replace('"', " "))


def wrong_in(words: list[str]) -> str | None:
    """What is wrong with a call of `riskstream`; None if it names a command and options that there are."""
    rest = list(words)
    while rest and rest[0] in GLOBAL_OPTIONS:
        rest = rest[1 + GLOBAL_OPTIONS[rest[0]] :]
    if not rest:
        return None
    commands = LazyCommands()
    if rest[0] not in commands:
        return f"no command {rest[0]}"
    command: Any = commands[rest[0]]
    rest = rest[1:]
    if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"no command {rest[0]}"
        command = command.commands[rest[0]]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in rest if word.startswith("-") and word not in known | GLOBAL_OPTIONS.keys()]
    return f"no option {unknown[0]}" if unknown else None


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", read(ROOT / "Makefile"), re.MULTILINE))


def unknown_names(text: str) -> list[str]:
    """Settings, variables and metrics that the code does not have."""
    found = []
    for piece in code(text):
        dotted = re.findall(r"\b[a-z]+\.[a-z_]+\b(?![./])", piece)
        found += [name for name in dotted if name.partition(".")[0] in SECTIONS and name not in SETTINGS]
        variables = re.findall(rf"\b{ENV_PREFIX}\w+", piece)
        found += [name for name in variables if name not in OTHER_VARIABLES and _setting_of(name) not in SETTINGS]
        found += [name for name in re.findall(r"\briskstream_[a-z_]+", piece) if name not in METRICS]
    return found


def _setting_of(variable: str) -> str:
    return variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_there_is(page: Path) -> None:
    text = read(page)
    assert broken_links(page) == []
    assert [(words, wrong) for words in command_lines(text) if (wrong := wrong_in(words)) is not None] == []
    shown = {target for piece in code(text) for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]+)", piece)}
    assert shown <= make_targets()
    assert unknown_names(text) == []


TEST_LINK = re.compile(r"\[([\w/.]+)::(\w+)\]\(\.\./tests/([\w/.]+)\)")


def missing_tests(text: str) -> list[str]:
    """Links to a test that is not there, and rows of the tables of guarantees without any link to a test."""
    missing = []
    for path, name, target in TEST_LINK.findall(text):
        file = ROOT / "tests" / target
        if path != target or not file.exists() or f"\ndef {name}(" not in read(file):
            missing.append(f"{path}::{name}")
    for section in ("## What is assumed", "## When a partition is assigned", "## When something fails"):
        rows = [line for line in text.partition(section)[2].partition("\n## ")[0].splitlines() if line.startswith("| ")]
        missing += [row for row in rows[2:] if not TEST_LINK.search(row)]
    return missing


def test_every_row_of_the_tables_of_guarantees_has_a_test() -> None:
    text = read(ROOT / "docs" / "guarantees.md")
    assert len(TEST_LINK.findall(text)) > 25
    assert missing_tests(text) == []


def test_a_row_without_its_test_is_found() -> None:
    text = read(ROOT / "docs" / "guarantees.md")
    assert missing_tests(text.replace("::test_w_below_c_is_replayed", "::test_that_is_gone")) != []
    assert missing_tests(text.replace("| W > C |", "| W > C | x |\n| W > C |")) == ["| W > C | x |"]


def test_these_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](page.md#one) [b](page.md#two) [c](gone.md) [d](https://example.org)\n")
    assert broken_links(page) == ["page.md#two", "gone.md"]
    assert [words[0] for words in command_lines("```\nriskstream fly --high\n```\n`riskstream run` is.")] == [
        "fly",
        "run",
    ]
    assert wrong_in(["fly"]) == "no command fly"
    assert wrong_in(["stack", "sideways"]) == "no command sideways"
    assert wrong_in(["run", "--fast"]) == "no option --fast"
    assert wrong_in(["--set", "kafka.group=x", "run", "--bundle", "b", "--worker-id", "w"]) is None
    names = "`kafka.groups` `kafka.group` `RISKSTREAM_KAFKA__GROUPS` `riskstream_luck_total` `riskstream_events_total`"
    assert unknown_names(names) == ["kafka.groups", "RISKSTREAM_KAFKA__GROUPS", "riskstream_luck_total"]


def test_the_generated_tables_are_current() -> None:
    assert reference.outdated(reference.DOCS) == [], "run `make reference`"


def test_a_stale_table_is_found_and_mended(tmp_path: Path) -> None:
    for name in {place for place, _ in reference.TABLES.values()}:
        (tmp_path / name).write_text(read(reference.DOCS / name), encoding="utf-8")
    page = tmp_path / "operations.md"
    page.write_text(read(page).replace("| `kafka.group`<br>", "| `kafka.grope`<br>"), encoding="utf-8")
    assert reference.main(["--check", "--docs", str(tmp_path)]) == 1
    assert reference.main(["--docs", str(tmp_path)]) == 0
    assert reference.main(["--check", "--docs", str(tmp_path)]) == 0
    assert read(page) == read(reference.DOCS / "operations.md")
    with pytest.raises(ValueError, match="generated: metrics"):
        reference.rendered("<!-- generated: settings -->\n<!-- end of settings -->", "operations.md")


def test_the_tables_hold_everything() -> None:
    text = read(reference.DOCS / "operations.md")
    assert [name for name in SETTINGS if f"| `{name}`<br>" not in text] == []
    assert [name for name in METRICS if f"| `{name}` |" not in text] == []
    assert {"riskstream_score", "riskstream_model_info", "riskstream_commits_total"} <= METRICS
    assert all(fact.help for fact in reference.metric_facts())
    labels = {fact.name: fact.labels for fact in reference.metric_facts()}
    assert labels["riskstream_events_total"] == ("outcome", "partition")


def test_every_exit_code_has_a_remedy() -> None:
    text = read(reference.DOCS / "operations.md")
    remedies = text.partition("<!-- end of exit codes -->")[2].partition("\n## ")[0]
    codes = [code for code, _, _ in reference.exit_codes()]
    assert codes == sorted(set(codes)), "an exit code stands for one error"
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", remedies, re.MULTILINE)] == codes


@pytest.mark.parametrize(
    ("page", "parts"),
    [
        ("history.md", (Mapping, CsvOptions, TextSource, NumberSource, TimeSource, LabelSource)),
        ("policy.md", (Policy, Thresholds, Scale, Band, ValueList, Rule, Condition)),
    ],
)
def test_every_key_of_a_file_is_explained(page: str, parts: tuple[type[BaseModel], ...]) -> None:
    text = read(reference.DOCS / page)
    assert [name for part in parts for name in part.model_fields if f"`{name}`" not in text] == []


def test_the_mapping_and_the_rates_that_are_shown_are_good(tmp_path: Path) -> None:
    mapping, rates = blocks(read(reference.DOCS / "history.md"), "yaml")
    (tmp_path / "mapping.yaml").write_text(mapping, encoding="utf-8")
    contract = WireContract.of(DOMAIN.event, DOMAIN.label)
    bound = load_mapping(tmp_path / "mapping.yaml", contract)
    assert bound.missing == []
    (tmp_path / "rates.yaml").write_text(rates, encoding="utf-8")
    assert Rates.load(tmp_path / "rates.yaml").knows("GBP")
    text = read(reference.DOCS / "history.md")
    assert [name for name in (*contract.text_fields, *contract.number_fields) if f"`{name}`" not in text] == []


def test_the_policy_that_is_shown_is_good(tmp_path: Path) -> None:
    (tmp_path / "stolen_devices.txt").write_text("device-1\n")
    (tmp_path / "policy.yaml").write_text(blocks(read(reference.DOCS / "policy.md"), "yaml")[0], encoding="utf-8")
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy.lists[0].values == {"device-1"}
    columns = {column.name for column in DOMAIN.aggregate_columns}
    assert {condition.column for rule in policy.rules for condition in rule.when} <= columns | {None}


def test_the_settings_file_that_is_shown_is_good(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(blocks(read(reference.DOCS / "operations.md"), "yaml")[0], encoding="utf-8")
    assert load_settings(tmp_path / "settings.yaml", {}, {}).settings.kafka.group == "fraud"


def test_the_domain_that_is_shown_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown_logins.py").write_text(
        blocks(read(reference.DOCS / "domains.md"), "python")[0], encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    domain = load_domain(Settings(domain="shown_logins:DOMAIN"))
    login = {
        "event_id": "e", "account_id": "a", "timestamp": "2026-03-01T12:00:00Z", "effort": 0.5, "currency": "USD",
        "device_id": "d", "ip": "10.0.0.1", "result": "success",
    }  # fmt: skip
    values = [json.dumps(login | {"event_id": f"e{place}"}).encode() for place in range(2)]
    records = [MemoryRecord("transactions", 0, place, -1, None, value, ()) for place, value in enumerate(values)]
    decoded = Decoder(domain.event, BatchSettings()).decode(records)
    assert decoded.rejects == []
    partition, offset = np.zeros(2, np.int32), np.arange(2, dtype=np.int64)
    batch = ColumnBuilder(domain, Rates.base_only()).events(decoded.events, decoded.time_ms, partition, offset)
    state = FeatureState(domain, accounts=64, entities=64)
    state.admit_new(batch)
    assembled = state.assemble(batch)
    column = [column.name for column in domain.aggregate_columns].index("count_10min")
    assert assembled.aggregates[:, column].tolist() == [1.0, 2.0]
    groups = FeatureGroups.of(domain.step_columns, domain.aggregate_columns).names
    usual = {column.name: 0.0 for column in domain.aggregate_columns}
    words = Explainer(groups, domain.aggregate_columns, domain.reasons, usual)
    contributions = np.array([[1.0 if group == "velocity" else 0.0 for group in groups]])
    assert words.explain(contributions, assembled.aggregates[1:])[0][0].code == "MANY_LOGINS"


def test_a_word_is_explained_once() -> None:
    words = re.findall(r"^\*\*(.+?)\*\*", read(reference.DOCS / "glossary.md"), re.MULTILINE)
    assert len(words) > 60
    assert sorted(word for word in set(words) if words.count(word) > 1) == []


def test_every_decision_is_listed() -> None:
    folder = reference.DOCS / "adr"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", read(folder / "README.md"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
    for name in listed:
        headings = re.findall(r"^\*\*(Context|Decision|Consequences|Alternatives)", read(folder / name), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "Alternatives"], name
