"""Writes the wire contract from the pydantic models: docs/schemas/*.schema.json and docs/asyncapi.yaml.

`python -m stream.schemas` writes them, `python -m stream.schemas --check` exits 1 when they are not current.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from stream.config import TopicSettings
from stream.domains.payments_schema import Label, Transaction
from stream.events.records import Alert, DeadLetter, RiskScore
from stream.rollout.records import Deployment

CONTRACT_VERSION = "1.1.0"
"""Raised by hand: the middle number when a field is added, the first when one changes or goes."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCS = Path(__file__).resolve().parent.parent / "docs"

_ACCOUNT_KEY = {"type": "string", "description": "the account id: all records of an account share a partition"}
_TRACE_HEADERS = {
    "type": "object",
    "properties": {
        "traceparent": {"type": "string", "description": "W3C trace context, carried through to the outputs"}
    },
}


@dataclass(frozen=True)
class Channel:
    """One topic and the records in it."""

    name: str
    address: str
    model: type[BaseModel]
    action: Literal["send", "receive"]
    """As the engine does it."""
    keyed: bool = True

    @property
    def file(self) -> str:
        return f"{self.name}.schema.json"


def channels(topics: TopicSettings) -> tuple[Channel, ...]:
    """The engine's topics under the names that the settings give them."""
    return (
        Channel("transaction", topics.transactions, Transaction, "receive"),
        Channel("label", topics.labels, Label, "receive"),
        Channel("risk-score", topics.scores, RiskScore, "send"),
        Channel("alert", topics.alerts, Alert, "send"),
        Channel("dead-letter", topics.dead_letters, DeadLetter, "send", keyed=False),
        Channel("model-deployment", topics.models, Deployment, "receive", keyed=False),
    )


def json_schema(channel: Channel) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one record."""
    return {"$schema": DIALECT, "$id": channel.file} | channel.model.model_json_schema(mode="validation")


def asyncapi(topics: TopicSettings) -> dict[str, Any]:
    """The AsyncAPI 3.0 document, from the engine's point of view."""
    all_channels = channels(topics)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "riskstream",
            "version": CONTRACT_VERSION,
            "description": (
                "Payment events and labels in, risk scores, alerts and dead letters out, over Kafka. Topic names are "
                "settings; these are the defaults. Outputs are written in transactions: read them with "
                "isolation.level=read_committed, and ignore fields that you don't know."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel) for channel in all_channels},
        "operations": {f"{channel.action}-{channel.name}": _operation(channel) for channel in all_channels},
        "components": {"messages": {channel.name: _message(channel) for channel in all_channels}},
    }


def _channel(channel: Channel) -> dict[str, Any]:
    return {
        "address": channel.address,
        "description": (channel.model.__doc__ or "").strip(),
        "messages": {channel.name: {"$ref": f"#/components/messages/{channel.name}"}},
    }


def _operation(channel: Channel) -> dict[str, Any]:
    return {
        "action": channel.action,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "messages": [{"$ref": f"#/channels/{channel.name}/messages/{channel.name}"}],
    }


def _message(channel: Channel) -> dict[str, Any]:
    key = {"bindings": {"kafka": {"key": _ACCOUNT_KEY}}} if channel.keyed else {}
    return {
        "name": channel.name,
        "title": channel.model.__name__,
        "contentType": "application/json",
        "headers": _TRACE_HEADERS,
        "payload": {"$ref": f"./schemas/{channel.file}"},
    } | key


def documents() -> dict[str, str]:
    """Every generated file: path below docs/ -> content."""
    topics = TopicSettings()
    found = {
        f"schemas/{channel.file}": json.dumps(json_schema(channel), indent=2, ensure_ascii=False) + "\n"
        for channel in channels(topics)
    }
    head = "# Generated from the pydantic models by `python -m stream.schemas`; do not edit.\n"
    plain = json.loads(json.dumps(asyncapi(topics)))  # shared parts would become YAML anchors
    found["asyncapi.yaml"] = head + yaml.safe_dump(plain, sort_keys=False, width=110)
    return found


def outdated(folder: Path) -> list[str]:
    """The generated files that are missing, differ or should not be there."""
    wanted = documents()
    stale = [name for name, content in wanted.items() if _content(folder / name) != content]
    unknown = [f"schemas/{path.name}" for path in sorted((folder / "schemas").glob("*.schema.json"))]
    return stale + [name for name in unknown if name not in wanted]


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stream.schemas", description="Writes the schemas of the wire.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not current")
    parser.add_argument(
        "--docs", type=Path, default=DOCS, help="the folder to write to (default: the repository's docs)"
    )
    options = parser.parse_args(arguments)
    if options.check:
        stale = outdated(options.docs)
        for name in stale:
            print(f"{name}: not current; run `python -m stream.schemas`", file=sys.stderr)
        return 1 if stale else 0
    for name, content in documents().items():
        path = options.docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
