"""More events than a worker can do, on real Kafka: it sheds in order, keeps its memory, catches up, loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broker.conftest import Deploy
from tests.broker.harness import messages_of, payments, until

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

SLOW_WORKER = Path(__file__).with_name("slow_worker.py")
EVENTS = 2_000
MEMORY_MIB = 400
"""More than a worker's arena and caches grow while it does so few events, and less than an unbounded queue would."""


def test_at_more_than_it_can_do_it_sheds_in_order_and_catches_up(deploy: Deploy, bundle: Path) -> None:
    """With its model it would need 20 s: 10 ms an event."""
    deployment = deploy(
        partitions=2, scoring__bundle=bundle, scoring__deadline_ms=1_000, scoring__max_batch_ms=60_000,
        batch__max_events=64,
    )  # fmt: skip
    worker = deployment.worker(program=(SLOW_WORKER, "10"))
    # Published before it starts: a fetch in the middle of the publishing would know of few events for a while.
    deployment.publish(messages_of(payments(EVENTS, accounts=200)))
    deployment.started(worker)
    before_mib = worker.metric("process_resident_memory_bytes") / 2**20
    until(lambda: worker.metric("riskstream_consumer_lag_events") > EVENTS / 4, "its lag is seen")
    took_s = deployment.wait_done(300.0)
    assert len(deployment.check_exactly_once()) == EVENTS
    assert worker.metric("riskstream_identity_gap_events") == 0
    assert worker.metric("process_resident_memory_bytes") / 2**20 - before_mib < MEMORY_MIB
    print(f"caught up after {took_s:.1f} s")
    steps = ("reasons", "challengers", "model")
    counted = [worker.metric("riskstream_shed_events_total", step=step) for step in steps]
    assert counted == sorted(counted, reverse=True)
    assert counted[0] > counted[1] > counted[2] > EVENTS / 4, "each step is taken in turn"
    shed = [output for output in deployment.scores() if "shed_model" in output.content["flags"]]
    assert len(shed) == counted[2]
    assert all("rules_only" in output.content["flags"] for output in shed)
    # In time again, it leaves out nothing more: a few events, one by one.
    for number in range(60):
        deployment.publish(messages_of(payments(1, seed=1 + number)))
        deployment.wait_done()
        if worker.metric("riskstream_shed_step") == 0:
            break
    assert worker.metric("riskstream_shed_step") == 0
    assert worker.terminate() == 0
