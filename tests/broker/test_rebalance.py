"""Partitions that move between live workers: every event is scored once, whoever has it."""

from __future__ import annotations

import pytest

from tests.broker.conftest import Deploy
from tests.broker.harness import messages_of, payments, until

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


def test_workers_that_join_and_leave_share_the_events(deploy: Deploy) -> None:
    deployment = deploy(partitions=4)
    first, second = deployment.worker("w0"), deployment.worker("w1")
    events = list(payments(3_000, accounts=60))
    deployment.started(first)
    deployment.publish(messages_of(events[:1_000]))
    # It joins under load.
    deployment.started(second)
    deployment.publish(messages_of(events[1_000:2_000]))
    deployment.wait_done()
    shares = [worker.metric("riskstream_events_in_total") for worker in (first, second)]
    assert all(shares), shares
    # It leaves under load.
    deployment.publish(messages_of(events[2_000:]))
    assert first.terminate() == 0
    assert deployment.members() == {"w1"}
    deployment.wait_done()
    assert second.metric("riskstream_identity_gap_events") == 0
    until(second.is_ready, "the second worker has all partitions")
    scores = deployment.check_exactly_once()
    assert len(scores) == len(events)
    assert {score.record.partition for score in scores} == {0, 1, 2, 3}
