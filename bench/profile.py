"""`make profile`: a flame graph by py-spy of a worker under load, and its table by stage."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.job import Job
from bench.processes import deployed

_EVENTS = 200_000
_BURN_IN = 60_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--client", choices=("kafka-python", "confluent"), default="kafka-python")
    parser.add_argument("--out", type=Path, default=Path("profile.svg"))
    parser.add_argument("--seconds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="riskstream-profile-") as folder:
        job = Job(Path(folder))
        with deployed(job, "profile", kafka__client=options.client) as deployment:
            deployment.publish(job.messages(_EVENTS))
            with deployment.worker() as worker:
                deployment.until(_BURN_IN, worker)
                spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(worker.pid)]
                spy += ["--rate", "200", "--duration", str(options.seconds), "--threads", "--output", str(options.out)]
                # A process may look into its children; where it may not, py-spy says what right it lacks.
                subprocess.run(spy, check=True, stdout=subprocess.DEVNULL)
                print(worker.finish())
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
