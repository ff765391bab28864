"""The checker shares no code with what it checks, and the check of that can fail."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKER = ROOT / "tests" / "checker"
FORBIDDEN = {"stream", "models", "bench"}


def foreign_imports(source: str) -> set[str]:
    """Modules of this repository, other than the checker's own, that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            own = name == "tests.checker" or name.startswith("tests.checker.")
            if name.partition(".")[0] in FORBIDDEN | {"tests"} and not own:
                found.add(name)
    return found


def test_the_checker_imports_nothing_of_the_engine() -> None:
    sources = sorted(CHECKER.glob("*.py"))
    assert {path.name for path in sources} >= {"checks.py", "readers.py"}
    assert {path.name: foreign_imports(path.read_text()) for path in sources} == {path.name: set() for path in sources}


@pytest.mark.parametrize(
    "line",
    ["import stream", "from stream.kafka.port import Record", "import models.nets", "from tests.crash import traffic"],
)
def test_an_import_of_the_engine_is_found(line: str) -> None:
    assert foreign_imports(f"def late():\n    {line}\n")
    assert not foreign_imports("from tests.checker import checks\nimport redis, kafka")
