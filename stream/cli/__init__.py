"""The command line `riskstream`. Every command lives in a module of its own, imported when it is called."""

from stream.cli.root import main

__all__ = ["main"]
