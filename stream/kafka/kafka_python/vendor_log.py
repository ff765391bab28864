"""What kafka-python may write to the log."""

from __future__ import annotations

import logging

import kafka.errors as vendor


class OnCallersThread(Exception):
    """Raised in the vendor's rebalance callback: the revocation must first run on the caller's thread."""


class _DropExpected(logging.Filter):
    """Drops what kafka-python reports as errors and is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_our_refusal = record.exc_info is not None and record.exc_info[0] is OnCallersThread
        arguments = record.args if isinstance(record.args, tuple) else ()
        # A close cancels requests, and may find its socket closed already. An offset that hangs on a
        # transaction is asked for again and again, every few milliseconds.
        is_expected = any(isinstance(each, (vendor.Cancelled, vendor.UnstableOffsetCommitError)) for each in arguments)
        is_closed = bool(arguments) and record.name == "kafka.net.transport" and "(closed)" in str(arguments[0])
        return not (is_our_refusal or is_expected or is_closed)


_FILTER = _DropExpected()


def quieten_vendor_log() -> None:
    """Keeps kafka-python below WARNING silent: at DEBUG it writes passwords, and keys and values of every record."""
    logger = logging.getLogger("kafka")
    if logger.level < logging.WARNING:
        logger.setLevel(logging.WARNING)
    for name in ("kafka.coordinator.consumer", "kafka.cluster", "kafka.net.transport"):
        logging.getLogger(name).addFilter(_FILTER)
