"""A public card history through real Kafka and Redis, every score checked against offline scoring.

Run by `make replay-sparkov`. Trains on the first part of the history, replays all of it through two workers,
audits the topics, scores the same file offline with the labels folded where the workers folded them, and
compares. Twice: with 4 partitions, where only scores without other partitions' entity values must agree, and
with 1, where all must. The last line of stdout is JSON.

The data: RISKSTREAM_SHARED_DATA, or ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, roc_auc_score

from stream.config import load_settings
from stream.kafka.kafka_python.client import KafkaPythonClient
from stream.kafka.port import TopicPartition
from stream.stack.kafka import ApacheKafka
from stream.stack.redis import RedisServer

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RISKSTREAM_SHARED_DATA", ROOT.parent / "shared" / "data"))
HISTORY = DATA / "sparkov_cards.parquet"
MAPPING = ROOT / "examples" / "sparkov.yaml"
LABEL_DELAY = "7d"
TRAIN_UNTIL = "2020-01-01"
_HISTORY = [str(HISTORY), "--mapping", str(MAPPING), "--label-delay", LABEL_DELAY]
WORKERS = 2
_TOLERANCE = 1e-6
_STALL_S = 120.0


def main() -> int:
    """Does both replays; 0 if every event was scored once and all comparable scores agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, help="only the first so many events: a quick try")
    parser.add_argument("--bundle", type=Path, help="a bundle that is there already, instead of training one")
    options = parser.parse_args()
    if not HISTORY.exists():
        print(f"{HISTORY} is not here; set RISKSTREAM_SHARED_DATA to the folder that holds it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="riskstream-replay-") as folder:
        bundle = options.bundle or trained(Path(folder) / "bundle")
        four = replay(4, bundle, Path(folder), options.events)
        one = replay(1, bundle, Path(folder), options.events)
    good = all(
        run["identity_holds"]
        and run["exactly_once"]
        and run["scored"] > 0
        and run["max_score_difference"] is not None
        and run["max_score_difference"] <= _TOLERANCE
        for run in (four, one)
    )
    print(json.dumps(four | {"one_partition": one}))
    return 0 if good else 1


def trained(bundle: Path) -> Path:
    """A bundle trained on the first part of the history."""
    tell(f"training on the history before {TRAIN_UNTIL}")
    riskstream(["train", *_HISTORY, "--until", TRAIN_UNTIL, "--out", str(bundle)], {})
    return bundle


def replay(partitions: int, bundle: Path, folder: Path, events: int | None) -> dict[str, Any]:
    """One replay on servers of its own; the figures of the JSON line."""
    limit = [] if events is None else ["--limit", str(events)]
    with servers(folder / f"servers-{partitions}") as environment:
        riskstream(["topics", "create", "--partitions", str(partitions)], environment)
        with workers(bundle, environment, folder):
            tell(f"replaying through {WORKERS} workers, {partitions} partitions")
            started = time.monotonic()
            published = riskstream_json(["replay", *_HISTORY, *limit, "--speed", "max"], environment)
            wait_until_done(environment, partitions)
            seconds = time.monotonic() - started
        online = folder / f"online-{partitions}.parquet"
        audit = riskstream_json(["audit", "--out", str(online)], environment, may_fail=True)
    tell("scoring the same file offline")
    offline = folder / f"offline-{partitions}.parquet"
    positions = ["--partitions", str(partitions), "--label-positions", str(online)]
    riskstream(["score", *_HISTORY, *limit, *positions, "--bundle", str(bundle), "--out", str(offline)], {})
    return {
        "events": published["events"],
        **{name: audit[name] for name in ("scored", "duplicates", "dead", "alerts", "identity_holds", "exactly_once")},
        "events_per_s": round(published["events"] / seconds, 1),
        **quality(online),
        **compare(online, offline),
        "partitions": partitions,
        "seconds": round(seconds, 1),
    }


def compare(online: Path, offline: Path) -> dict[str, Any]:
    """The largest difference in probability: where no other partition's values took part, and elsewhere."""
    ours, theirs = _by_origin(online), _by_origin(offline)
    if not np.array_equal(ours["origin"], theirs["origin"]) or ours["event_id"] != theirs["event_id"]:
        tell("the two runs did not score the same events")
        return {"max_score_difference": None, "compared": 0}
    difference = np.abs(ours["probability"] - theirs["probability"])
    alone = ours["alone"] & theirs["alone"]
    return {
        "max_score_difference": float(difference[alone].max(initial=0.0)),
        "compared": int(alone.sum()),
        "rest": {
            "events": int((~alone).sum()),
            "max_score_difference": float(difference[~alone].max(initial=0.0)),
            "mean_score_difference": float(difference[~alone].mean()) if (~alone).any() else 0.0,
        },
    }


def _by_origin(path: Path) -> dict[str, Any]:
    """A score table in order of origin; `alone`: no other partition's values took part."""
    table = pq.read_table(path, columns=["partition", "offset", "event_id", "probability", "entity_view_age_ms"])
    table = table.sort_by([("partition", "ascending"), ("offset", "ascending")])
    return {
        "origin": np.stack([table["partition"].to_numpy(), table["offset"].to_numpy()]),
        "event_id": table["event_id"].to_pylist(),
        "probability": table["probability"].to_numpy(),
        "alone": table["entity_view_age_ms"].is_null().to_numpy(zero_copy_only=False),
    }


def quality(online: Path) -> dict[str, float | None]:
    """AUC and average precision of the scores after the training period."""
    scores = pq.read_table(online, columns=["event_id", "probability"])
    truth = pq.read_table(HISTORY, columns=["trans_num", "unix_time", "is_fraud"])
    truth = truth.append_column("event_id", truth["trans_num"].cast("string"))
    joined = scores.join(truth, "event_id", join_type="inner")
    until_s = int(np.datetime64(TRAIN_UNTIL, "s").astype(np.int64))
    tested = joined.filter(pc.greater_equal(joined["unix_time"].cast("int64"), until_s))
    if tested.num_rows == 0:
        return {"auc": None, "average_precision": None}  # a quick try that ends before the training does
    fraud, probability = tested["is_fraud"].to_numpy(), tested["probability"].to_numpy()
    return {
        "auc": round(float(roc_auc_score(fraud, probability)), 4),
        "average_precision": round(float(average_precision_score(fraud, probability)), 4),
    }


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """Apache Kafka and redis-server of this run alone; the environment that leads to them."""
    with ApacheKafka(folder / "kafka") as kafka, RedisServer(folder / "redis") as redis:
        yield {
            "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
            "RISKSTREAM_REDIS__URL": redis.url,
            "RISKSTREAM_KAFKA__GROUP": "replay-sparkov",
            # All of history is behind at once; nothing of it may be left out.
            "RISKSTREAM_SCORING__DEADLINE_MS": "0",
        }


@contextlib.contextmanager
def workers(bundle: Path, environment: Mapping[str, str], folder: Path) -> Iterator[None]:
    """The workers as processes; ended with SIGTERM, and each must then exit with 0."""
    running = []
    for number in range(WORKERS):
        log = (folder / f"worker-{number}.log").open("wb")
        command = [*COMMAND, "run", "--worker-id", f"worker-{number}", "--bundle", str(bundle)]
        running.append(subprocess.Popen(command, stderr=log, env=os.environ | environment))
    try:
        wait_until_assigned(running, [folder / f"worker-{number}.log" for number in range(WORKERS)])
        yield
        for process in running:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(60) for process in running]
        if any(codes):
            raise SystemExit(f"workers ended with {codes}: {(folder / 'worker-0.log').read_text()[-2000:]}")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_until_assigned(running: list[subprocess.Popen[bytes]], logs: list[Path]) -> None:
    """Until every worker has said in its log that it got partitions: loading torch is no part of the speed."""
    deadline = time.monotonic() + _STALL_S
    while not all('"assigned"' in log.read_text() for log in logs):
        if time.monotonic() > deadline or any(process.poll() is not None for process in running):
            raise SystemExit(f"a worker did not start: {logs[0].read_text()[-2000:]}")
        time.sleep(0.2)


def wait_until_done(environment: Mapping[str, str], partitions: int) -> None:
    """Until the group's committed offsets have reached the end of the transactions."""
    settings = load_settings(None, dict(environment), {}).settings
    client = KafkaPythonClient(settings.kafka)
    admin, reader = client.admin(), client.reader()
    inputs = [TopicPartition(settings.topics.transactions, number) for number in range(partitions)]
    try:
        total, done, changed = sum(reader.end_offset(tp) for tp in inputs), -1, time.monotonic()
        while done < total:
            time.sleep(1)
            committed = admin.last_committed(settings.kafka.group, inputs)
            now = sum(offset.offset for offset in committed.values())
            if now != done:
                changed = time.monotonic()
            elif time.monotonic() - changed > _STALL_S:
                raise SystemExit(f"the workers stand still at {done:,} of {total:,} events")
            done = now
            tell(f"  {done:,} of {total:,} events committed", again=True)
    finally:
        reader.close()
        admin.close()


@dataclass
class _Told:
    at: float = 0.0


_TOLD = _Told()


def tell(text: str, *, again: bool = False) -> None:
    """A line on stderr; one that comes again and again, at most every ten seconds."""
    if again and time.monotonic() - _TOLD.at < 10:
        return
    _TOLD.at = time.monotonic()
    print(text, file=sys.stderr, flush=True)


COMMAND = [sys.executable, "-m", "stream.cli"]


def riskstream(arguments: list[str], environment: Mapping[str, str]) -> None:
    """Runs a command; its failure ends this."""
    subprocess.run([*COMMAND, *arguments], check=True, env=os.environ | environment, stdout=sys.stderr)


def riskstream_json(arguments: list[str], environment: Mapping[str, str], *, may_fail: bool = False) -> dict[str, Any]:
    """Runs a command with --json and returns what it says."""
    command = [*COMMAND, *arguments, "--json"]
    done = subprocess.run(command, check=not may_fail, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    sys.exit(main())
