"""Logs: JSON unless a person watches, one set-up for both loggers, and no identities."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import kafka.errors as vendor
import pytest
import structlog

from stream.config import LogSettings
from stream.kafka.kafka_python.vendor_log import quieten_vendor_log
from stream.logs import configure_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_loggers_write_json_lines_with_the_fixed_fields() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(), stream=stream, worker="worker-7")
    structlog.get_logger("engine").info("assigned", partitions=[1, 2])
    logging.getLogger("kafka.client").warning("away: %s", "broker 1")
    thread = threading.Thread(target=structlog.get_logger().warning, args=("from a thread",))
    thread.start()
    thread.join()
    first, second, *_ = lines(stream)
    assert (first["message"], first["partitions"], first["level"]) == ("assigned", [1, 2], "info")
    assert (second["message"], second["level"]) == ("away: broker 1", "warning")
    assert {line["worker"] for line in lines(stream)} == {"worker-7"}
    assert str(first["time"]).endswith("Z")


def test_identities_never_reach_a_line() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(), stream=stream)
    structlog.get_logger().info("x", account_id="4000123412341234", ip="10.1.2.3", event_id="e-1", offset=5)
    logging.getLogger("foreign").error("y", extra={"card_id": "4000123412341234"})
    assert "4000123412341234" not in stream.getvalue()
    assert "10.1.2.3" not in stream.getvalue()
    assert lines(stream)[0]["offset"] == 5
    assert lines(stream)[0]["account_id"] == "[hidden]"


def test_of_kafka_pythons_errors_only_the_expected_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    quieten_vendor_log()
    selector, coordinator = logging.getLogger("kafka.net.selector"), logging.getLogger("kafka.coordinator")
    for error in (vendor.RebalanceInProgressError(), vendor.Cancelled(), ValueError("a defect")):
        try:
            raise error
        except Exception:
            selector.exception("Unhandled exception in task %s:", "join")
    coordinator.error("Error sending %s to node %s [%s]", "HeartbeatRequest", 1, vendor.Cancelled())
    coordinator.error("Error sending %s to node %s [%s]", "HeartbeatRequest", 1, vendor.KafkaConnectionError())
    exceptions = [record.exc_info[0] if record.exc_info else None for record in caplog.records]
    assert exceptions == [ValueError, None]
    assert "KafkaConnectionError" in caplog.records[1].getMessage()


def test_below_the_level_nothing_is_written() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(level="warning"), stream=stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("foreign").info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["message"] for line in lines(stream)] == ["loud"]


def test_an_exception_is_one_line_of_json() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(), stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream)
    assert "ValueError: broken" in str(line["exception"])


@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
        ("auto", io.StringIO(), True),
    ],
)
def test_the_format_follows_the_setting_and_the_terminal(form: str, stream: io.StringIO, is_json: bool) -> None:
    configure_logs(LogSettings.model_validate({"format": form}), stream=stream)
    structlog.get_logger().info("hello", partition=3)
    text = stream.getvalue()
    assert "hello" in text
    assert text.startswith("{") is is_json


def test_setting_it_up_again_replaces_the_first_set_up() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logs(LogSettings(), stream=first)
    configure_logs(LogSettings(), stream=second)
    structlog.get_logger().info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1
