"""The job on Quix Streams, exactly-once: state in its RocksDB and changelog topics, a sequence of 16 for the model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from quixstreams import Application, State

from bench.rivals.account import Model, fold, new_state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("state_folder", type=Path)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    model = Model(options.bundle)
    application = Application(
        broker_address=options.bootstrap,
        consumer_group="quix",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        # Few large transactions: each costs about 10 ms, and nobody waits for the result here.
        commit_every=2_000,
        commit_interval=1.0,
        state_dir=options.state_folder,
        loglevel="WARNING",
    )
    source = application.topic("transactions", key_deserializer="str", value_deserializer="json")
    target = application.topic("risk-scores", key_serializer="str", value_serializer="json")

    def handle(event: dict[str, Any], state: State[str, Any]) -> dict[str, Any]:
        account = state.get("account") or new_state()
        steps, aggregates = fold(account, event, model.width, model.depth)
        state.set("account", account)
        return event | model.score(steps, aggregates)

    application.dataframe(source).apply(handle, stateful=True).to_topic(target)
    application.run()  # it ends with SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(main())
