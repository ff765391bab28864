"""The decoder against its slow twin, on seeded mutations of real messages, alone and among others."""

from __future__ import annotations

import ipaddress
import json
import math
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from stream.config import BatchSettings
from stream.domains.payments_schema import Transaction
from stream.events.decoder import Decoder
from stream.events.fields import IpAddress
from tests.unit.test_decode import ARRIVED_MS, EVENT, LIMITS, Message, event, packed

Mutation = Callable[[random.Random, bytes], bytes]

TOKENS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b" :", b",", b"\n:", b"NaN", b"-Infinity", b"1e999", b"null", b"true",
    b"0", b"-", b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud83d", b"\\u0000", b'":', b'\\":', b',"amount":1',
    b',"amount" :1', b',"amount"  :1',
    b',"z":{"a":1,"a":2}', b',"z":[{"b":"\\"b\\":"}]', b'"x":{}', b"[[[[[[[[[[[[[[[[",
    b"9" * 40, b"2025-02-30T00:00:00Z", b" ",
]  # fmt: skip
VALUES: list[Any] = [
    None, "", 0, -1, 1e13, True, [], {}, "x" * 129, "EUR", "eur", "2026-01-01T00:05:00.001Z", "2026-01-01T00:05:00Z",
    "2025-06-30T12:00:00.5+02:00", "1989-12-31T23:59:59.999Z", "::1", "1.2.3", "\x7f", "a\tb", {"k": [1]}, {"k": 1.5},
    0.1, math.inf, math.nan, {"k": [-math.inf]},
]  # fmt: skip
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def twin(value: bytes | None, arrived_ms: int, limits: BatchSettings) -> dict[str, Any] | None:
    """The event that a message holds, None if it must be rejected. One message, no haste."""
    if value is None or len(value) > limits.max_message_bytes:
        return None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    try:
        text = value.decode("utf-8")
        found = json.loads(text, object_pairs_hook=unique)
        if values(found) > limits.max_values:
            return None
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")  # fails for lone surrogates and NaN
        Transaction.model_validate_json(value)
    except (ValueError, ValidationError, RecursionError):
        return None
    if depth(found) > limits.max_nesting or not TIMESTAMP.fullmatch(found["timestamp"]):
        return None
    moment = datetime.fromisoformat(found["timestamp"])
    if moment.timestamp() * 1000 >= arrived_ms + limits.future_tolerance_ms + 1:
        return None
    if not datetime(1990, 1, 1, tzinfo=UTC) <= moment < datetime(2101, 1, 1, tzinfo=UTC):
        return None
    return dict(found)


def values(value: Any) -> int:
    """As the limit counts: every object and list, and every member and item but the first of each."""
    if not isinstance(value, dict | list):
        return 0
    items = list(value.values() if isinstance(value, dict) else value)
    return max(1, len(items)) + sum(map(values, items))


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def insert(random_: random.Random, value: bytes) -> bytes:
    place = random_.randrange(len(value) + 1)
    return value[:place] + random_.choice(TOKENS) + value[place:]


def cut(random_: random.Random, value: bytes) -> bytes:
    place = random_.randrange(len(value))
    return value[:place] + value[place + random_.randrange(1, 12) :]


def flip(random_: random.Random, value: bytes) -> bytes:
    place = random_.randrange(len(value))
    return value[:place] + bytes([random_.randrange(256)]) + value[place + 1 :]


def append_member(random_: random.Random, value: bytes) -> bytes:
    tail = random_.choice(TOKENS) + random_.choice([b"", b"}", b'"}', b"]}"])
    return value[:-1] + tail + b"}"


def change_field(random_: random.Random, value: bytes) -> bytes:
    changed = event()
    name = random_.choice([*EVENT, "attributes", "card_id", "extra"])
    changed[name] = random_.choice(VALUES)
    if random_.random() < 0.2:
        changed.pop(random_.choice(list(EVENT)), None)
    spaces = random_.choice([(",", ":"), (", ", ": "), (" , ", " : ")])
    return json.dumps(changed, separators=spaces, ensure_ascii=random_.random() < 0.5).encode()


def join_with_self(random_: random.Random, value: bytes) -> bytes:
    return value + random_.choice([b"", b",", b"\n"]) + value


def pad(random_: random.Random, value: bytes) -> bytes:
    filler = random_.choice([b"x", b'\\"', b"{[", b"\xc3\xbc", b" :"]) * random_.randrange(2_000, 9_000)
    return value[:-1] + b',"pad":"' + filler + b'"}'


def widen(random_: random.Random, value: bytes) -> bytes:
    item = random_.choice([b"0", b"[]", b"{}", b'"[,"', b'{"a":[1,2]}', b"[[[]]]"])
    return value[:-1] + b',"wide":[' + b",".join([item] * random_.choice([10, 2_000, 3_000, 5_000, 9_000])) + b"]}"


MUTATIONS: list[Mutation] = [insert, cut, flip, append_member, change_field, change_field, join_with_self]


def mutated(random_: random.Random) -> bytes | None:
    if random_.random() < 0.01:
        return None
    value = packed(event_id=f"evt-{random_.randrange(10**6)}", note=random_.choice(["", "a :b", 'q"q', '{"a":1}', "ü"]))
    if random_.random() < 0.1:
        value = random_.choice([pad, widen])(random_, value)
    for _ in range(random_.choice([0, 1, 1, 2])):
        if value:
            value = random_.choice(MUTATIONS)(random_, value)
    return value


@pytest.mark.parametrize("seed", range(8))
def test_the_decoder_agrees_with_its_twin_whatever_the_neighbours(seed: int) -> None:
    random_ = random.Random(seed)
    limits = LIMITS.model_copy(update={"max_message_bytes": 40_000, "max_nesting": random_.choice([3, 16])})
    decoder = Decoder(Transaction, limits)
    messages = [Message(mutated(random_)) for _ in range(1_000)]
    expected = [twin(message.value, message.timestamp, limits) for message in messages]
    assert 200 < sum(found is not None for found in expected) < 800  # both outcomes are really tried

    alone = [decoder.decode([message]) for message in messages]
    assert [one.events[0] if one.events else None for one in alone] == expected
    for found, one in zip(expected, alone, strict=True):
        if found is not None:
            since = datetime.fromisoformat(found["timestamp"]) - datetime(1970, 1, 1, tzinfo=UTC)
            assert one.time_ms.tolist() == [since // timedelta(milliseconds=1)]

    for size in (2, 7, 100, 1_000):
        for start in range(0, len(messages), size):
            together = decoder.decode(messages[start : start + size])
            singly = alone[start : start + size]
            kept = [index for index, one in enumerate(singly) if one.events]
            assert together.indices == kept
            assert together.events == [singly[index].events[0] for index in kept]
            assert together.time_ms.tolist() == [int(singly[index].time_ms[0]) for index in kept]
            words = [(i, r.stage, r.code, r.field, r.reason) for i, one in enumerate(singly) for r in one.rejects]
            assert [(r.index, r.stage, r.code, r.field, r.reason) for r in together.rejects] == words


def test_the_twin_can_tell() -> None:
    """The twin itself rejects and accepts what it should, so agreement means something."""
    assert twin(packed(), ARRIVED_MS, LIMITS) == EVENT
    for bad in (None, b"{}", packed()[:-1] + b',"amount":1}', packed(x=[[]] * 3)[:-1], packed(amount=math.nan)):
        assert twin(bad, ARRIVED_MS, LIMITS) is None


def test_ip_addresses_agree_with_the_standard_library() -> None:
    random_ = random.Random(3)
    validate = TypeAdapter(IpAddress).validate_python
    groups = ["0", "1", "ab", "FFFF", "12345", "", "", "g"]
    octets = ["0", "1", "9", "10", "99", "100", "199", "249", "250", "255", "256", "01", ""]
    outcomes = []
    for _ in range(20_000):
        if random_.random() < 0.4:
            text = ".".join(random_.choices(octets, k=random_.choice([3, 4, 4, 4, 5])))
        else:
            text = ":".join(random_.choices(groups[: random_.choice([4, 7, 8])], k=random_.randrange(2, 10)))
            text += random_.choice(["", "", "", ":1.2.3.4", "%eth0", "/64"])
        outcomes.append(accepts(validate, text))
        assert outcomes[-1] == (is_ip(text) and "%" not in text), text
    assert 2_000 < sum(outcomes) < 18_000


def accepts(validate: Callable[[str], str], text: str) -> bool:
    try:
        return validate(text) == text
    except ValidationError:
        return False


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
