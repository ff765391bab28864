"""Models that are announced, traffic that passes their moments, and how long its events wait."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream.events.moments import moment_ms
from stream.rollout import library, topic
from stream.rollout.records import Deployment, Place, place_of
from stream.scoring.bundle import MANIFEST_FILE, read_manifest, seal
from stream.scoring.lineup import CHAMPION
from tests.broker.conftest import Deploy
from tests.broker.harness import Deployment as Corner
from tests.broker.harness import Output, WorkerProcess, message_of, moment_text, payments, until

Timed = tuple[int, Mapping[str, Any]]
"""(Kafka timestamp, event)."""

STEP_MS = 10_000
"""Between the moments of two models."""
EVENTS_PER_SWAP, SWAPS_PER_STRETCH = 30, 10
EVENTS_PER_S = 300
LOADING_MS = 500
"""What loading takes at least in the workers with a planted mistake: a bundle of the default size takes longer."""
_BEGIN_MS = int(time.time()) * 1000 - 7_200_000
"""Of today: the broker's retention goes by the records' timestamps, and would take older ones while the test runs."""
_FIRST_MS = _BEGIN_MS + 3_600_000


def version_of(bundle: Path, target: Path, version: str) -> Path:
    """The same net under another version: a bundle of its own, sealed anew."""
    shutil.copytree(bundle, target)
    fields = json.loads((target / MANIFEST_FILE).read_bytes())
    (target / MANIFEST_FILE).write_bytes(seal({**fields, "version": version}))
    return target


def shelve(shelves: Path, bundle: Path, version: str) -> Place:
    """A further version in the library."""
    shelves.mkdir(exist_ok=True)
    folder = version_of(bundle, shelves.parent / f"made-{version}", version)
    place = place_of(read_manifest((folder / MANIFEST_FILE).read_bytes()))
    library.add(shelves, folder, place)
    shutil.rmtree(folder)
    return place


def changes(worker: WorkerProcess, role: str = CHAMPION) -> float:
    return worker.metric("riskstream_model_changes_total", role=role)


def by_moment(count: int, first_ms: int, step_ms: int, seed: int) -> Iterator[Timed]:
    """Payments whose time, and Kafka timestamp, goes on by `step_ms`."""
    for number, event in enumerate(payments(count, seed=seed, accounts=60)):
        moment = first_ms + number * step_ms
        yield moment, event | {"timestamp": moment_text(moment)}


Stretch = Mapping[str, float]
"""When each event of a stretch of traffic went out, by its id: milliseconds on this machine's clock."""


@dataclass(slots=True)
class Rollout:
    """Two workers, models from stated moments on, and traffic that passes them."""

    corner: Corner
    workers: Sequence[WorkerProcess]
    places: Sequence[Place]
    published: int = 0
    quiet: list[Stretch] = field(default_factory=list)
    loading: list[Stretch] = field(default_factory=list)
    swapping: list[Stretch] = field(default_factory=list)

    def run(self) -> None:
        """For some models at a time: a stretch in which nothing happens, one in which they load, one that passes them.

        Each is done before the next begins.
        """
        step_ms = STEP_MS // EVENTS_PER_SWAP
        self._publish_live(_BEGIN_MS, 1)  # the workers' first events: kernels, connections
        self.corner.wait_done()
        for first in range(0, len(self.places), SWAPS_PER_STRETCH):
            start_ms = _FIRST_MS + first * STEP_MS
            self.quiet.append(self._publish_live(start_ms - 3 * step_ms, 1))
            self.corner.wait_done()
            new = self.places[first : first + SWAPS_PER_STRETCH]
            self._announce(new, start_ms)
            self.loading.append(self._publish_live(start_ms - 2 * step_ms, 1))
            self.corner.wait_done()
            known = first + len(new)
            until(lambda known=known: all(changes(worker) == known for worker in self.workers), "they have them")
            self.swapping.append(self._publish_live(start_ms - step_ms, step_ms))
            self.corner.wait_done()

    def _announce(self, places: Sequence[Place], first_ms: int) -> None:
        for number, place in enumerate(places):
            deployed = Deployment(
                role=CHAMPION, bundle=place, from_ms=first_ms + number * STEP_MS, deployed_ms=_BEGIN_MS
            )
            topic.publish(self.corner.client, self.corner.settings, deployed)

    def expected_model(self, moment: int, before: str) -> str:
        """Who scores the event with this Kafka timestamp; `before` the first moment another one."""
        number = (moment - _FIRST_MS) // STEP_MS
        return before if number < 0 else self.places[min(number, len(self.places) - 1)].model

    def _publish_live(self, first_ms: int, step_ms: int) -> Stretch:
        """A stretch at EVENTS_PER_S; its Kafka timestamps are made up, and say which models are passed."""
        count = EVENTS_PER_SWAP * SWAPS_PER_STRETCH
        sent: dict[str, float] = {}
        started = time.monotonic()

        def live() -> Iterator[Timed]:
            for number, timed in enumerate(by_moment(count, first_ms, step_ms, seed=1 + self.published)):
                time.sleep(max(0.0, started + number / EVENTS_PER_S - time.monotonic()))
                sent[timed[1]["event_id"]] = time.time() * 1000
                yield timed

        self._publish(live())
        return sent

    def _publish(self, events: Iterable[Timed]) -> None:
        self.published += self.corner.publish_at((moment, message_of(event)) for moment, event in events)


def rollout(deploy: Deploy, bundle: Path, folder: Path, *, swaps: int, program: Sequence[str | Path] = ()) -> Rollout:
    """Two workers that wait for models, and the models."""
    shelves = folder / "library"
    places = [shelve(shelves, bundle, f"v{number:03d}") for number in range(1, swaps + 1)]
    corner = deploy(
        partitions=4,
        scoring__bundle=bundle,
        scoring__library=shelves,
        scoring__watch_interval_ms=100,
        scoring__max_batch_ms=5_000,
        batch__max_events=64,
    )
    topic.create(corner.admin, corner.settings)
    workers = [corner.worker(name, program) for name in ("w0", "w1")]
    corner.started(*workers)
    return Rollout(corner, workers, places)


@dataclass(frozen=True, slots=True)
class Wait:
    """Milliseconds from an event's publication to its score: of the last event of a stretch, median over stretches."""

    quiet_ms: float
    other_ms: float

    @property
    def is_late(self) -> bool:
        """Whether events wait as though for the loading of a bundle. What slows the machine slows both kinds."""
        return self.other_ms - self.quiet_ms > max(2 * LOADING_MS, 3 * self.quiet_ms)


def wait(quiet: Sequence[Stretch], other: Sequence[Stretch], scores: Sequence[Output]) -> Wait:
    """The longest waits of stretches in which models are loaded or change, beside those in which none does."""
    scored_ms = {output.content["event_id"]: moment_ms(output.content["scored_at"]) for output in scores}

    def longest(stretches: Sequence[Stretch]) -> float:
        return statistics.median(max(scored_ms[name] - sent for name, sent in each.items()) for each in stretches)

    return Wait(longest(quiet), longest(other))
