"""The check of the lock finds what it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
HASHES = [f"    --hash=sha256:{digit * 64}" for digit in "ab"]
LOCK = "\n".join(
    [
        "one-thing==1.2.3 \\",
        f"{HASHES[0]} \\",
        HASHES[1],
        "    # via us",
        "two==2.0 ; sys_platform == 'x' \\",
        HASHES[0],
        "",
    ]
)
PROJECT = '[project]\ndependencies = ["One_Thing[extra]>=1.2,<2"]\n[project.optional-dependencies]\ndev = ["two"]\n'
REFUSED = "# a comment\nelse 1.0 bad\n"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problems() -> Callable[[str, str, str], Iterator[str]]:
    return script("check_lock").problems


def test_the_projects_own_lock_is_good(problems: Callable[[str, str, str], Iterator[str]]) -> None:
    files = ("requirements.lock", "pyproject.toml", ".ci/refused-versions.txt")
    assert list(problems(*((ROOT / name).read_text() for name in files))) == []
    assert list(problems(LOCK, PROJECT, REFUSED)) == []


@pytest.mark.parametrize(
    ("lock", "project", "refused", "found"),
    [
        (LOCK.replace("==1.2.3", ">=1.2.3"), PROJECT, REFUSED, "not pinned"),
        (LOCK.replace("==1.2.3", " @ git+https://example.org/x"), PROJECT, REFUSED, "not pinned"),
        (LOCK.replace(f" \\\n{HASHES[0]} \\\n{HASHES[1]}", ""), PROJECT, REFUSED, "one-thing has no hash"),
        (LOCK.replace("sha256:a", "md5:a", 1), PROJECT, REFUSED, "not SHA-256"),
        (f"--extra-index-url https://example.org\n{LOCK}", PROJECT, REFUSED, "--extra-index-url stands in the lock"),
        (LOCK, PROJECT.replace(">=1.2,<2", ">=2"), REFUSED, "is not in the lock"),
        (LOCK, PROJECT.replace('"two"', '"three"'), REFUSED, "three is not in the lock"),
        (LOCK, PROJECT.replace('"two"', '"two @ https://example.org/two.whl"'), REFUSED, "two comes from a URL"),
        (LOCK, PROJECT, "One.Thing 1.2.3 it is bad\n", "One.Thing 1.2.3 is refused: it is bad"),
    ],
)
def test_each_thing_is_found(
    problems: Callable[[str, str, str], Iterator[str]], lock: str, project: str, refused: str, found: str
) -> None:
    assert any(found in problem for problem in problems(lock, project, refused)), [*problems(lock, project, refused)]


@pytest.mark.parametrize(
    ("reachable", "holes", "codes"),
    [(True, False, (0, 0)), (True, True, (1, 1)), (False, False, (1, 0))],
)
def test_the_audit_says_what_it_could_not_ask(
    capsys: pytest.CaptureFixture[str], reachable: bool, holes: bool, codes: tuple[int, int]
) -> None:
    """A database that does not name a hole that is known tells nothing about the lock."""
    audit = script("audit")
    asked: list[str] = []

    def ask(requirements: Path) -> tuple[int, str]:
        asked.append(requirements.name)
        if not reachable:
            return 1, "ERROR:pip_audit._cli:jinja2: Dependency not found on PyPI"
        if requirements.name != "requirements.lock":
            return 1, "jinja2 3.1.5 PYSEC-2025-1"
        return (1, "one-thing 1.2.3 CVE-2026-1") if holes else (0, "No known vulnerabilities found")

    assert (audit.main([], ask), audit.main(["--if-reachable"], ask)) == codes
    told = capsys.readouterr().out
    assert ("requirements.lock" in asked) == reachable
    assert ("CVE-2026-1" in told) == holes
    assert ("Not audited" in told) == ("jinja2: Dependency not found" in told) == (not reachable)
