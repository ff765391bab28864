"""What kafka-python may write to the log."""

from __future__ import annotations

import logging

import kafka.errors as vendor


class OnCallersThread(Exception):
    """Raised in the vendor's rebalance callback: the revocation must first run on the caller's thread."""


class _DropExpected(logging.Filter):
    """Drops what kafka-python reports as errors and is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        raised = record.exc_info[0] if record.exc_info else None
        is_our_refusal = raised is OnCallersThread
        # "Unhandled exception in task": whoever awaits the task, as each poll does its join, gets it all the same.
        is_of_a_task = (
            record.name == "kafka.net.selector" and raised is not None and issubclass(raised, vendor.KafkaError)
        )
        arguments = record.args if isinstance(record.args, tuple) else ()
        # A close cancels requests, and may find its socket closed already. An offset that hangs on a
        # transaction is asked for again and again, every few milliseconds.
        is_expected = any(isinstance(each, (vendor.Cancelled, vendor.UnstableOffsetCommitError)) for each in arguments)
        is_closed = bool(arguments) and record.name == "kafka.net.transport" and "(closed)" in str(arguments[0])
        return not (is_our_refusal or is_of_a_task or is_expected or is_closed)


_FILTER = _DropExpected()
_LOGGERS = ("cluster", "coordinator", "coordinator.consumer", "net.selector", "net.transport")


def quieten_vendor_log() -> None:
    """Keeps kafka-python below WARNING silent: at DEBUG it writes passwords, and keys and values of every record."""
    logger = logging.getLogger("kafka")
    if logger.level < logging.WARNING:
        logger.setLevel(logging.WARNING)
    for name in _LOGGERS:
        logging.getLogger(f"kafka.{name}").addFilter(_FILTER)
