"""`make bench-check`: the cases that take under a minute, their ratios beside the committed ones.

Ratios alone are compared, never times: they divide figures of one run, so a slow day cancels out. Run it
before a change of the hot path lands; `UPDATE=1` writes what was found as the new ratios to commit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.__main__ import RESULTS, measure

CASES = ["model", "inside", "offline", "engine-fast", "state"]
COMMITTED = RESULTS / "check.json"
TOLERANCE = 0.2
LOWER_IS_BETTER = frozenset({"state_bytes_to_packed", "accounts_largest_to_smallest"})


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share by which a ratio may be worse")
    parser.add_argument("--cases", nargs="+", default=CASES, help="which cases")
    parser.add_argument("--update", action="store_true", help="write the ratios found as those to compare with")
    options = parser.parse_args()
    found = measure(options.cases, quick=True)["ratios"]
    if options.update:
        COMMITTED.parent.mkdir(parents=True, exist_ok=True)
        COMMITTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(f"written to {COMMITTED}")
        return 0
    committed = committed_ratios(COMMITTED)
    rows = compare(committed, found, options.tolerance)
    print(f"{'ratio':<30} {'committed':>10} {'found':>10}")
    for name, before, now, verdict in rows:
        print(f"{name:<30} {before:>10.4f} {now:>10.4f}  {verdict}")
    worse = [name for name, _, _, verdict in rows if verdict == "WORSE"]
    print(json.dumps({"worse": worse, "ratios": found, "tolerance": options.tolerance}))
    return 1 if worse else 0


def committed_ratios(path: Path) -> dict[str, float]:
    """SystemExit when there are none."""
    if not path.exists():
        raise SystemExit(f"{path} is not there: make bench-check UPDATE=1 writes it")
    found: dict[str, float] = json.loads(path.read_text())
    return found


def compare(
    committed: dict[str, float], found: dict[str, float], tolerance: float
) -> list[tuple[str, float, float, str]]:
    """(name, committed, found, verdict) of the ratios that both have: WORSE, better or same."""
    rows = []
    for name in sorted(committed.keys() & found.keys()):
        before, now = float(committed[name]), found[name]
        gain = before / now if name in LOWER_IS_BETTER else now / before
        verdict = "WORSE" if gain < 1 - tolerance else "better" if gain > 1 + tolerance else "same"
        rows.append((name, before, now, verdict))
    return rows


if __name__ == "__main__":
    sys.exit(main())
