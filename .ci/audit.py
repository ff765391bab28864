"""Compares every pin of requirements.lock with the holes that PyPI's vulnerability database knows by now.

    audit.py [--if-reachable]

The database is first asked about a version with a hole that has long been known: where it does not name that, its
silence about the others would mean nothing. Then the audit fails; with `--if-reachable` it says what was done instead.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten

ROOT = Path(__file__).resolve().parents[1]
KNOWN_BAD = "jinja2==3.1.5"
_OPTIONS = ("--no-deps", "--disable-pip", "--strict", "--progress-spinner", "off")
_TIMEOUT_S = 300.0
NOT_ASKED = """\
Not audited: PyPI's vulnerability database does not answer here ({reason}).
Done instead, without a network: every pin is hashed, comes from the package index and from nowhere else, and is on no
line of .ci/refused-versions.txt. Holes that were found since that list was written are NOT known to this run: `make
audit` asks for them, where PyPI itself can be reached; do that before a release and at every change of the lock."""


def ask(requirements: Path) -> tuple[int, str]:
    """pip-audit's exit code and what it says. Blocks."""
    tool = Path(sys.executable).with_name("pip-audit")
    command = [tool, "--requirement", requirements, *_OPTIONS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {_TIMEOUT_S:.0f} s"
    return done.returncode, done.stdout + done.stderr


def main(arguments: Sequence[str], ask: Callable[[Path], tuple[int, str]] = ask) -> int:
    """0 if the database knows of no hole, or cannot be asked and need not be."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "requirements.txt"
        probe.write_text(f"{KNOWN_BAD}\n", encoding="utf-8")
        _, told = ask(probe)
    if "CVE-" not in told and "PYSEC-" not in told and "GHSA-" not in told:
        reason = next((line for line in reversed(told.splitlines()) if line.strip()), "it names no hole")
        print(NOT_ASKED.format(reason=shorten(reason.rpartition("ERROR:pip_audit._cli:")[2], 100)))
        return 0 if "--if-reachable" in arguments else 1
    code, told = ask(ROOT / "requirements.lock")
    print(told.strip())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
