"""What `simulate` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stream.cli.connection import admin_of, connect, reader_of
from stream.cli.context import note, print_json
from stream.cli.publishing import publishing, summarise
from stream.clock import SystemClock
from stream.config import Settings
from stream.errors import ConfigError
from stream.events.moments import moment_text
from stream.publish import newest_event_ms, play
from stream.simulate.live import LiveTraffic
from stream.simulate.simulation import Simulation
from stream.topics import partition_counts


def scenario_mix(words: Sequence[str] | None) -> dict[str, float] | None:
    """`stolen_card=2` as {"stolen_card": 2.0}; None without words. ConfigError names what is wrong."""
    if not words:
        return None
    mix = {}
    for word in words:
        name, equals, weight = word.partition("=")
        try:
            mix[name.strip()] = float(weight) if equals else 1.0
        except ValueError:
            raise ConfigError(f"--scenario {word}: write NAME=WEIGHT, such as stolen_card=2") from None
    try:
        Simulation(accounts=1, mix=mix)
    except ValueError as error:
        raise ConfigError(f"--scenario: {error}") from None
    return mix


def publish_simulation(
    settings: Settings,
    simulation: Simulation,
    *,
    rate_per_s: float,
    events: int | None,
    duplicates: float,
    malformed: float,
    json: bool,
) -> None:
    """Live traffic onto Kafka until `events`, or Ctrl-C. Goes on after the newest event that the topic holds."""
    client, topic, clock = connect(settings), settings.topics.transactions, SystemClock()
    with admin_of(client) as admin, reader_of(client) as reader:
        newest = newest_event_ms(reader, topic, partition_counts(admin, settings)[topic], clock.now_ms())
    from_ms = simulation.start_ms if newest is None else max(simulation.start_ms, newest + 1)
    if from_ms > simulation.start_ms:
        note(f"goes on after the newest event of {topic}, {moment_text(from_ms)[:16]}")
    traffic = LiveTraffic(
        simulation,
        from_ms=from_ms,
        rate_per_s=rate_per_s,
        clock=clock,
        seed=simulation.seed,
        duplicates=duplicates,
        malformed=malformed,
        opening=newest is None,
    )
    with publishing(settings, events) as run:
        published = play(traffic, run.publisher, clock, run.stop, most_events=events, tell=run.tell)
    summarise(published, json)


def write_simulation(
    simulation: Simulation, out: Path, *, events: int | None, until_ms: int | None, json: bool
) -> None:
    """The simulation as a history file, and its mapping."""
    from stream.cli.history_file import write_history  # pyarrow: for a file alone

    batch = simulation.generate(events, until_ms=until_ms)
    mapping = write_history(batch, out)
    frauds = int((batch.fraud == 1).sum())
    if json:
        print_json({"file": str(out), "mapping": str(mapping), "events": len(batch), "frauds": frauds})
    else:
        print(f"{out}: {len(batch):,} events, {frauds:,} labelled fraud; its mapping: {mapping}")
