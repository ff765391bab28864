"""Commands that neither score nor train start quickly: nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pyarrow", "sklearn", "scipy", "kafka", "redis")


def heavy_modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("stream.cli", set()),
        ("stream.config", set()),
        ("stream.domains.payments", set()),
        ("stream.simulate.live", set()),
        ("stream.stack", set()),
        ("stream.kafka.kafka_python", {"kafka"}),
        ("stream.state.redis", {"redis"}),
        ("stream.history.reader", {"pyarrow"}),
    ],
)
def test_importing_brings_nothing_heavy(module: str, allowed: set[str]) -> None:
    assert heavy_modules_after(f"import {module}") <= allowed


def test_the_check_can_fail() -> None:
    assert heavy_modules_after("import redis") == {"redis"}
