"""`riskstream run`, but at one of the engine's fault points it stops still, or fails, once a file exists.

    faulty_worker.py POINT halt|fail FILE run

At POINT it renames FILE to FILE.reached. Then it sleeps until it is killed, or raises an error with FILE's text.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

from stream import app
from stream.cli import main


def fault(point: str, action: str, file: Path, here: str) -> None:
    """Halts or fails at the point, if the file is there."""
    if here == point and file.exists():
        reached = file.rename(f"{file}.reached")
        if action == "fail":
            raise ValueError(reached.read_text())
        time.sleep(3_600)


if __name__ == "__main__":
    where, what, path = sys.argv[1:4]
    app.build_worker = functools.partial(app.build_worker, fault=functools.partial(fault, where, what, Path(path)))
    main(sys.argv[4:])
