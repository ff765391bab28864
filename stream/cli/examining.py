"""What `doctor` looks at: connects what can be connected, and reports what cannot."""

from __future__ import annotations

from pathlib import Path

from stream.app import load_domain, open_store
from stream.cli.connection import connect
from stream.config import Settings
from stream.doctor import examine
from stream.scoring.bundle import verify
from stream.state.store import Finding


def examine_all(settings: Settings, *, golden: bool) -> list[Finding]:
    """Everything that `stream.doctor` finds. Blocks for some seconds."""
    domain = load_domain(settings)

    def verified(folder: Path) -> str:
        manifest = verify(folder, domain=domain, golden=golden).manifest
        return f"{manifest.label} verifies" + ("" if golden else " (golden outputs not run; --golden does)")

    store = open_store(settings, domain)
    try:
        return examine(settings, connect(settings), store, verified, account_field=domain.account_field)
    finally:
        store.close()
