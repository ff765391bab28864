"""`make soak`: a long run under faults, and the verdict of a checker that shares no code with the engine.

The last line of stdout is JSON. Exit code 0 only if nothing is lost, twice, different, out of order, or wrong
in another way; else the seed, the strikes up to there and the command that repeats them are printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.broker.conftest import train_bundle
from tests.broker.harness import START_MS
from tests.soak.arena import Seen
from tests.soak.run import Outcome, soak
from tests.soak.schedule import Plan, Strike, plan
from tests.soak.workers import Zygote

_EVERY_S = 10.0


class Telling:
    """Progress on stderr: one line that changes on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, planned: Plan) -> None:
        self._plan, self._began, self._at = planned, time.monotonic(), 0.0

    def __call__(self, seen: Seen, strike: Strike | None, word: str) -> None:
        now = time.monotonic()
        live = sys.stderr.isatty()
        if not word and now - self._at < (0.2 if live else _EVERY_S):
            return
        self._at = now
        place = f"strike {strike.number + 1} of {len(self._plan.strikes)} ({strike.fault})" if strike else word
        line = (
            f"{now - self._began:6.0f} s  {len(seen.kills)} kills of {self._plan.kills}  "
            f"{seen.committed:,} events committed  {place}"
        )
        print(f"\r\x1b[K{line}" if live and not word else line, end="" if live and not word else "\n", file=sys.stderr)
        sys.stderr.flush()


def main() -> int:
    """Parses the command line, runs, prints the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kill -9 of workers; the other faults come in proportion")
    parser.add_argument("--seed", type=int, default=1, help="the plan and the traffic hang on it")
    parser.add_argument("--seconds", type=float, help="begin no new strike after so many seconds")
    parser.add_argument(
        "--variant", choices=("apart", "mixed"), default="apart", help="mixed: partitions share merchants"
    )
    parser.add_argument(
        "--client", choices=("kafka-python", "confluent"), default="kafka-python", help="the workers' kafka.client"
    )
    parser.add_argument("--rate", type=float, default=30.0, help="messages per second, whatever happens")
    parser.add_argument("--only", type=int, help="the first so many strikes of the plan")
    parser.add_argument("--plan", action="store_true", help="print the plan and end")
    parser.add_argument("--keep", type=Path, help="folder for logs and data; else a temporary one, kept on failure")
    options = parser.parse_args()
    whole = plan(options.seed, options.kills)
    planned = Plan(whole.seed, whole.strikes[: options.only])
    if options.plan:
        print("\n".join(str(strike) for strike in planned.strikes))
        return 0
    folder = options.keep or Path(tempfile.mkdtemp(prefix="riskstream-soak-"))
    outcome = run(planned, folder, options)
    good = report(outcome, folder, options)
    if good and options.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(outcome.summary()))
    return 0 if good else 1


def run(planned: Plan, folder: Path, options: argparse.Namespace) -> Outcome:
    from stream.simulate.simulation import Simulation

    bundle = folder / "bundle"
    if not bundle.exists():
        print("training a small model", file=sys.stderr)
        train_bundle(Simulation(accounts=60, merchants=40, seed=11, fraud_rate=0.04, start_ms=START_MS), bundle)
    zygote = Zygote(bundle)
    try:
        expected_s = options.seconds or 4.0 * len(planned.strikes)
        return soak(
            planned, folder, zygote, bundle, variant=options.variant, client=options.client, rate=options.rate,
            seconds=options.seconds, events=int(options.rate * expected_s), tell=Telling(planned),
        )  # fmt: skip
    finally:
        zygote.close()


def report(outcome: Outcome, folder: Path, options: argparse.Namespace) -> bool:
    """Prints what went wrong and how to repeat it; True if nothing did."""
    complaints = outcome.complaints
    if not complaints:
        return True
    print(f"\n{len(complaints)} complaints; the first ones:")
    print("\n".join(f"  {line}" for line in complaints[:20]))
    print(f"seed {outcome.plan.seed}; strikes up to here:")
    print("\n".join(f"  {strike}" for strike in outcome.struck))
    print(f"logs and data: {folder}")
    print("to repeat it:")
    print(
        f"  make soak KILLS={options.kills} SEED={options.seed} VARIANT={options.variant} "
        f"CLIENT={options.client} "
        f"ONLY={len(outcome.struck)} RATE={options.rate:g}"
    )
    return False


if __name__ == "__main__":
    sys.exit(main())
