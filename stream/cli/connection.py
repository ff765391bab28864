"""Kafka for commands that only talk to Kafka: importing the whole engine (app.py) would double their start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stream.config import Settings
from stream.kafka.connect import client_of
from stream.kafka.port import Admin, KafkaClient, Reader


def connect(settings: Settings) -> KafkaClient:
    """The Kafka client that the settings choose. Connects when first used."""
    return client_of(settings.kafka)


@contextmanager
def admin_of(client: KafkaClient) -> Iterator[Admin]:
    """An admin that is closed at the end."""
    admin = client.admin()
    try:
        yield admin
    finally:
        admin.close()


@contextmanager
def reader_of(client: KafkaClient) -> Iterator[Reader]:
    """A reader that is closed at the end."""
    reader = client.reader()
    try:
        yield reader
    finally:
        reader.close()
