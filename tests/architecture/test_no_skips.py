"""In CI a skipped test is a failure: the plugin that sees to it, run on small test files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


PLUGIN = ("-p", "tests.plugins.no_skips")
SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='no server')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('no server')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef server(): pytest.skip('no server')\ndef test_it(server): pass\n",
    "module": "import pytest\npytest.skip('no server', allow_module_level=True)\n",
    "import": "import pytest\npytest.importorskip('no_server')\n",
}
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n"


def run_pytest(folder: Path, files: dict[str, str], *options: str) -> tuple[int, str]:
    """Exit status and output of a pytest of its own over these test files."""
    for name, code in files.items():
        (folder / f"test_{name}.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-rfE", "-p", "no:cacheprovider", "-c", "/dev/null", *options]
    done = subprocess.run(
        [*command, "--rootdir", str(folder), str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_every_way_to_skip_fails(tmp_path: Path, workers: tuple[str, ...]) -> None:
    status, output = run_pytest(tmp_path, SKIPS, *PLUGIN, "--continue-on-collection-errors", *workers)
    assert status != 0, output
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    for name in SKIPS:
        assert any(f"test_{name}.py" in line for line in failed), output
    told = [line for line in output.splitlines() if line.startswith("in CI nothing may be skipped: ")]
    assert len(told) == len(SKIPS)
    assert all("server" in line for line in told)


def test_without_the_plugin_skips_pass(tmp_path: Path) -> None:
    files = SKIPS | {"passes": "def test_it(): pass\n"}
    assert run_pytest(tmp_path, files)[0] == 0


def test_expected_failures_stay_what_they_are(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, {"xfail": EXPECTED_FAILURE}, *PLUGIN)[0] == 0
