"""The loop of the tutorials: a kafka-python consumer, one GET, one model call and one SET an event, at-least-once."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

import redis
from kafka import KafkaConsumer, KafkaProducer

from bench.rivals.account import Model, fold, new_state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("redis_url")
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    model, store = Model(options.bundle), redis.Redis.from_url(options.redis_url)
    producer = KafkaProducer(bootstrap_servers=options.bootstrap, linger_ms=5)
    consumer = KafkaConsumer(
        "transactions",
        bootstrap_servers=options.bootstrap,
        group_id="tutorial",
        auto_offset_reset="earliest",
        max_poll_records=500,
    )
    while not stop.is_set():
        for records in consumer.poll(timeout_ms=200).values():
            for record in records:
                event = json.loads(record.value)
                key = "account:" + event["account_id"]
                found = store.get(key)
                state = new_state() if found is None else json.loads(found)
                steps, aggregates = fold(state, event, model.width, model.depth)
                score = model.score(steps, aggregates)
                store.set(key, json.dumps(state))
                producer.send("risk-scores", json.dumps(event | score).encode(), record.key)
    producer.flush()
    consumer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
