"""The check of the lock finds what it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture(scope="module")
def problems() -> Callable[[str, str, str], Iterator[str]]:
    spec = importlib.util.spec_from_file_location("check_lock", ROOT / ".ci" / "check_lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.problems


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
