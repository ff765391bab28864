"""What to tell an operator whom Kafka refuses: the same words whatever the client."""

from __future__ import annotations

_LISTED = "`riskstream rights` lists what is needed"

CREDENTIALS = "check kafka.sasl_username, kafka.sasl_password and kafka.sasl_mechanism"
TOPIC_RIGHT = f"the user of kafka.sasl_username lacks a right on a topic of topics.*; {_LISTED}"
GROUP_RIGHT = f"the user of kafka.sasl_username lacks the right Read on the group kafka.group; {_LISTED}"
TRANSACTIONAL_RIGHT = (
    "the user of kafka.sasl_username lacks the right Write on the transactional ids that begin with kafka.group and a "
    f"dash; {_LISTED}"
)
OTHER_RIGHT = f"the user of kafka.sasl_username lacks a right; {_LISTED}"
CERTIFICATE = "restarting does not cure it"
LOG_TRUNCATED = (
    "the log no longer holds the next offset: retention dropped it before it was read. Keep records longer; "
    "state.on_truncated_log=continue goes on without what is gone, with flagged scores"
)
