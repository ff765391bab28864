"""`riskstream run`, but it stops still at one of the engine's fault points while a file exists.

    halting_worker.py POINT FILE run

At POINT it renames FILE to FILE.reached and sleeps until it is killed.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

from stream import app
from stream.cli import main


def halt(point: str, file: Path, here: str) -> None:
    """Sleeps for ever at the point, if the file is there."""
    if here == point and file.exists():
        file.rename(f"{file}.reached")
        time.sleep(3_600)


if __name__ == "__main__":
    wanted, path = sys.argv[1:3]
    app.build_worker = functools.partial(app.build_worker, fault=functools.partial(halt, wanted, Path(path)))
    main(sys.argv[3:])
