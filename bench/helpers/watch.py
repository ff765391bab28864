"""Reads the scores as a read_committed consumer would, and notes when each became visible: due time to here."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from stream.kafka.headers import source_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("partitions", type=int)
    parser.add_argument("out", type=Path, help="gets (due ms, latency ms) of every score as a .npy file")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap,
            "group.id": "watch",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 500,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition("risk-scores", number, OFFSET_END) for number in range(options.partitions)])
    seen: list[tuple[int, float]] = []
    while not stop.is_set():
        message = consumer.poll(0.1)
        if message is None or message.error() is not None:
            continue
        now_ms = time.time() * 1000
        for one in [message, *consumer.consume(5_000, 0)]:
            due = source_ms(one.headers() or ())
            if due is not None:
                seen.append((due, now_ms - due))
    np.save(options.out, np.array(seen, dtype=np.float64).reshape(-1, 2))
    consumer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
