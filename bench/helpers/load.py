"""Open-loop load: every event has its due time and carries it; one that is sent late counts from its due time."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from confluent_kafka import Producer

from stream.kafka.headers import source_header

_TICK_S = 0.001


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("file", type=Path, help="lines of key, tab, value; used round after round")
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    messages = [tuple(line.split(b"\t", 1)) for line in options.file.read_bytes().splitlines()]
    producer = Producer(
        {
            "bootstrap.servers": options.bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "acks": "all",
            "enable.idempotence": True,
            "log_level": 0,
        }
    )
    produce, total = producer.produce, int(options.rate * options.seconds)
    started, wall_start_ms = time.monotonic(), time.time() * 1000
    sent, latest = 0, 0.0
    while sent < total:
        now = time.monotonic() - started
        due = min(total, int(now * options.rate) + 1)
        for number in range(sent, due):
            due_s = number / options.rate
            latest = max(latest, now - due_s)
            key, value = messages[number % len(messages)]
            produce("transactions", value, key, headers=[source_header(int(wall_start_ms + due_s * 1000))])
        sent = due
        producer.poll(0)
        time.sleep(_TICK_S)
    producer.flush()
    print(f"{sent} {latest:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
