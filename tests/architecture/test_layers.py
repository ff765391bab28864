"""The layers hold, and the check of them can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    # In the copy the copy's own packages must be found, not the installed ones.
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for package in ("stream", "models"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_are_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


PLANTED = (
    ("stream/errors.py", "stream.features.spec", "layers of stream"),
    ("stream/kafka/port.py", "stream.state.store", "layers of stream"),
    ("stream/scoring/scorer.py", "models", "never imports models"),
    ("stream/engine/worker.py", "kafka", "Vendors"),
    ("stream/engine/worker.py", "torch", "Vendors"),
    ("stream/history/batch.py", "stream.domains.payments", "know no domain"),
    ("stream/features/rows.py", "time", "Features are pure"),
    ("stream/features/rows.py", "random", "Features are pure"),
)


def test_forbidden_imports_are_found(copy: Path) -> None:
    before = {copy / module: (copy / module).read_text() for module, _, _ in PLANTED}
    for module, imported, _ in PLANTED:
        with (copy / module).open("a") as file:
            file.write(f"\nimport {imported}\n")
    report = lint_imports(copy).stdout
    for path, text in before.items():
        path.write_text(text)
    broken = [line for line in report.splitlines() if " BROKEN" in line]
    for module, imported, contract in PLANTED:
        importer = module.removesuffix(".py").replace("/", ".")
        assert f"{importer} -> {imported} (" in report, report
        assert any(contract in line for line in broken)


def test_a_module_without_a_layer_is_found(copy: Path) -> None:
    newcomer = copy / "stream" / "newcomer.py"
    newcomer.write_text("")
    done = lint_imports(copy)
    newcomer.unlink()
    assert done.returncode != 0
    assert "- stream.newcomer" in done.stdout
