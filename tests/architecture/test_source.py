"""Habits of the source that no linter knows, each with a piece of code that breaks it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERYTHING = ("stream", "models", "bench", "tests", "examples")
MOST_LINES = 500
IDENTITIES = frozenset(
    {"account", "account_id", "accounts", "card", "card_id", "device_id", "identity", "ip", "terminal_id"}
)
LOG_METHODS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "labels"})
LOGGERS = re.compile(r"(^|_)(log|logger|logging|metrics?)$", re.IGNORECASE)


_NAMED_BY = ((ast.keyword, "arg"), (ast.Name, "id"), (ast.Attribute, "attr"), (ast.Constant, "value"))


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def conditional_imports(tree: ast.AST) -> list[int]:
    """Lines that ask whether a type checker is reading: the scar of an import cycle."""
    name = "TYPE_" + "CHECKING"
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)
    ]


def star_imports(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


def identities_shown(tree: ast.AST) -> list[int]:
    """Calls of a logger, or of a metric's `labels`, that are handed an account, a card or an address."""
    return [call.lineno for call in _shown(tree) if any(_names_identity(part) for part in [*call.args, *call.keywords])]


def _shown(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOG_METHODS:
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            if node.func.attr == "labels" or LOGGERS.search(name):
                yield node


def _names_identity(part: ast.AST) -> bool:
    for node in ast.walk(part):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
            return False
        named = next((getattr(node, name) for kind, name in _NAMED_BY if isinstance(node, kind)), None)
        if named in IDENTITIES:
            return True
    return False


def offenders(find: Callable[[ast.AST], list[int]], *packages: str) -> list[str]:
    """file:line of all that `find` finds."""
    return [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources(*packages)
        for line in find(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_a_file_is_one_room() -> None:
    sizes = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in sources(*EVERYTHING)}
    assert {path: size for path, size in sizes.items() if size > MOST_LINES} == {}, "split these files"


def test_no_conditional_and_no_star_imports() -> None:
    assert offenders(conditional_imports, *EVERYTHING) == []
    assert offenders(star_imports, *EVERYTHING) == []


def test_no_identity_in_logs_or_metric_labels() -> None:
    assert offenders(identities_shown, "stream", "models") == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("log.info('restored', account_id=x)", True),
        ("self._log.warning('late', key=event.account_id)", True),
        ("logger.error(f'bad card {card_id}')", True),
        ("log.debug('seen', where=event['ip'])", True),
        ("self.metrics.events.labels(account=a).inc()", True),
        ("log.info('restored', accounts=len(rows))", True),
        ("log.info('restored', rows=len(accounts))", False),
        ("log.info('restored', partition=3)", False),
        ("counter.labels(outcome='scored').inc()", False),
        ("history.info(account_id)", False),
    ],
)
def test_the_check_for_identities_can_fail(code: str, found: bool) -> None:
    assert bool(identities_shown(ast.parse(code))) is found


def test_the_other_checks_can_fail() -> None:
    assert conditional_imports(ast.parse("import typing\nif typing.TYPE_" + "CHECKING:\n    pass")) == [2]
    assert conditional_imports(ast.parse("if TYPE_" + "CHECKING:\n    pass")) == [1]
    assert star_imports(ast.parse("from os import *")) == [1]
