"""Watches where bundles come from, verifies new ones in the background, hands them to the engine between turns.

Whatever goes wrong, the model that runs stays: a refusal is a log line and a count.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from stream.errors import BundleRefused, RiskstreamError
from stream.metrics import Metrics
from stream.rollout.records import Deployment, Place
from stream.rollout.topic import ModelsTopic
from stream.scoring.lineup import AT_ONCE, CHAMPION, Change
from stream.scoring.scorer import Scorer

_TRIES = 30
"""Looks for which a folder that was announced may be missing: shared file systems show new files late."""

Load = Callable[[Path], Scorer]
"""Verifies a bundle and makes it ready; BundleRefused."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A bundle that is to take a role. `folder` None: the role is to be empty."""

    role: str
    folder: Path | None
    digest: str | None = None
    """What the manifest's digest must be, where it was announced."""
    from_ms: int = AT_ONCE


class Source(Protocol):
    """Says what is wanted anew since the last look. Called from one thread at a time; may block and raise."""

    def look(self) -> Sequence[Wanted]: ...


class FolderSource:
    """A folder, or a symlink to one, whose content may change. A change counts once it has stood for two looks."""

    def __init__(self, role: str, folder: Path) -> None:
        self._role, self._folder = role, folder
        self._taken = self._seen = _fingerprint(folder)

    def look(self) -> Sequence[Wanted]:
        now, before = _fingerprint(self._folder), self._seen
        self._seen = now
        if now == self._taken or now != before or not now:
            return []
        self._taken = now
        # Resolved, so that a link that moves on meanwhile cannot mix two bundles.
        return [Wanted(self._role, self._folder.resolve())]


class TopicSource:
    """The models topic and the library in which its bundles lie."""

    def __init__(self, topic: ModelsTopic, library: Path, refuse: Callable[[str, str], None]) -> None:
        """`refuse(role, reason)` is told of records that are no deployments."""
        self._topic, self._library, self._refuse = topic, library, refuse
        self._begun = False

    def look(self) -> Sequence[Wanted]:
        found: list[Deployment] = []
        for record in self._topic.read():
            if isinstance(record, Deployment):
                found.append(record)
            else:
                self._refuse(CHAMPION, f"a record of the models topic: {record}")
        if not self._begun:
            self._begun = True
            return self._at_start(found)
        return [self._wanted(one.role, one.bundle, one.from_ms) for one in found]

    def _at_start(self, found: Sequence[Deployment]) -> list[Wanted]:
        """The newest of each role; before a champion's moment its predecessor serves."""
        wanted = []
        for one in {deployment.role: deployment for deployment in found}.values():
            if one.role == CHAMPION and one.former is not None:
                wanted.append(self._wanted(one.role, one.former, AT_ONCE))
            wanted.append(self._wanted(one.role, one.bundle, one.from_ms))
        return wanted

    def _wanted(self, role: str, place: Place | None, from_ms: int) -> Wanted:
        if place is None:
            return Wanted(role, None)
        return Wanted(role, self._library / place.folder, place.digest, from_ms)


class ModelWatch:
    """`start` and `stop` from the engine's thread, which also calls `take` between two turns."""

    def __init__(self, sources: Sequence[Source], load: Load, metrics: Metrics, *, interval_ms: int) -> None:
        self._sources, self._load, self._metrics = sources, load, metrics
        self._interval_s = interval_ms / 1000
        self._ready: deque[Change] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watch", daemon=True)
        self._complaint = ""
        self._late: list[tuple[Wanted, int]] = []
        self._log = structlog.get_logger("riskstream.models")

    def start(self) -> None:
        """Looks once, so that the first turn has what is deployed already; then goes on in the background. Blocks."""
        self._look()
        if self._interval_s > 0:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self) -> Sequence[Change]:
        """The changes that became ready since the last call. Does not block."""
        changes = []
        while self._ready:
            changes.append(self._ready.popleft())
        return changes

    def refuse(self, role: str, reason: str) -> None:
        """Counts and tells that something announced is not taken."""
        self._metrics.model_refusals.labels(role).inc()
        self._log.error("bundle refused; the model that runs stays", role=role, reason=reason)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        late, self._late = self._late, []
        for one, tries in late:
            self._prepare(one, tries)
        for source in self._sources:
            try:
                wanted = source.look()
                self._complaint = ""
            except RiskstreamError as error:
                if str(error) != self._complaint:  # once, not at every look
                    self._log.warning("the models' announcements cannot be read", error=str(error))
                self._complaint = str(error)
                continue
            for found in wanted:
                self._prepare(found, _TRIES)

    def _prepare(self, wanted: Wanted, tries: int) -> None:
        if wanted.folder is None:
            self._ready.append(Change(wanted.role, None))
            return
        if not wanted.folder.is_dir() and tries > 1:
            self._late.append((wanted, tries - 1))
            return
        try:
            scorer = self._load(wanted.folder)
        except BundleRefused as error:
            self.refuse(wanted.role, str(error))
            return
        except Exception as error:  # a bundle is data: whatever it provokes is its failure, and no reason to stop
            self.refuse(wanted.role, f"{wanted.folder.name}: {type(error).__name__} while it was verified")
            return
        if wanted.digest is not None and scorer.manifest.digest != wanted.digest:
            self.refuse(wanted.role, f"{wanted.folder.name}: holds another bundle than the one that was deployed")
            return
        self._log.info("bundle is ready", role=wanted.role, model=scorer.manifest.label, from_ms=wanted.from_ms)
        self._ready.append(Change(wanted.role, scorer, wanted.from_ms))


def _fingerprint(folder: Path) -> tuple[object, ...]:
    """What changes when the folder, or a link on its way, or a file in it changes; empty when it cannot be read."""
    try:
        real = folder.resolve(strict=True)
        files = sorted((entry.name, entry.stat()) for entry in real.iterdir())
    except OSError:
        return ()
    return str(real), *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in files)
