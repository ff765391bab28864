"""Writes deploy/grafana/dashboards/*.json from boards/. `python -m deploy.grafana.build --check` only compares."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import build

FOLDER = Path(__file__).parent / "dashboards"


def rendered() -> dict[str, str]:
    """File name -> what it should hold."""
    return {
        f"{name}.json": json.dumps(build(board), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for name, board in BOARDS.items()
    }


def outdated(folder: Path = FOLDER) -> list[str]:
    """Files that are not as they should be, are missing, or are not ours."""
    wanted = rendered()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a dashboard is not current")
    if parser.parse_args(arguments).check:
        stale = outdated()
        for name in stale:
            print(f"{name}: not current; run `make dashboards`", file=sys.stderr)
        return 1 if stale else 0
    for name, content in rendered().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
