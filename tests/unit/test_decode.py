"""Decoding: every kind of bad message ends as one reject with the right words, and touches no neighbour."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stream.config import BatchSettings
from stream.domains.iso import COUNTRIES, CURRENCIES
from stream.domains.payments_schema import Label, Transaction
from stream.errors import ConfigError
from stream.events.decoder import Decoded, Decoder
from stream.events.fields import Identifier, Moment
from stream.events.jsontext import nesting
from stream.events.moments import NO_MOMENT, moment_text, moments_ms
from stream.events.rejects import RejectCode, Stage

SECRET = "acct-4111111111111111"
ARRIVED_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
LIMITS = BatchSettings()
EVENT: dict[str, Any] = {
    "event_id": "evt-1",
    "account_id": SECRET,
    "timestamp": "2025-12-31T23:59:58.125Z",
    "amount": 12.5,
    "currency": "EUR",
    "merchant_id": "m-7",
    "mcc": "5411",
    "country": "DE",
    "channel": "pos",
    "terminal_id": "t-9",
    "device_id": None,
    "ip": "203.0.113.7",
    "latitude": 52.52,
    "longitude": 13.4,
    "entry_mode": "chip",
}


@dataclass(frozen=True)
class Message:
    value: bytes | None
    timestamp: int = ARRIVED_MS


def event(**changes: Any) -> dict[str, Any]:
    return EVENT | changes


def packed(**changes: Any) -> bytes:
    return json.dumps(event(**changes), separators=(",", ":")).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in EVENT.items() if key != name}).encode()


def spliced(old: bytes, new: bytes) -> bytes:
    assert old in packed()
    return packed().replace(old, new)


def decode(*values: bytes | None, decoder: Decoder | None = None) -> Decoded:
    return (decoder or Decoder(Transaction, LIMITS)).decode([Message(value) for value in values])


def nested(depth: int) -> bytes:
    """An event that is `depth` deep, itself counted."""
    return packed()[:-1] + b',"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


DECODE, VALIDATE = Stage.DECODE, Stage.VALIDATE
Code = RejectCode
BAD: dict[str, tuple[bytes | None, Stage, RejectCode, str | None, str]] = {
    "null value": (None, DECODE, Code.NULL_VALUE, None, "is null"),
    "empty": (b"", DECODE, Code.NOT_JSON, None, "is not JSON"),
    "not json": (b"amount=12", DECODE, Code.NOT_JSON, None, "is not JSON"),
    "truncated": (packed()[:-9], DECODE, Code.NOT_JSON, None, "is not JSON"),
    "two objects": (packed() + b"," + packed(), DECODE, Code.NOT_JSON, None, "is not JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + packed(), DECODE, Code.NOT_JSON, None, "is not JSON"),
    "lone surrogate": (spliced(b"m-7", b"\\ud800"), DECODE, Code.NOT_JSON, None, "is not JSON"),
    "raw control character": (spliced(b"m-7", b"m\x01"), DECODE, Code.NOT_JSON, None, "is not JSON"),
    "digits without end": (spliced(b"12.5", b"9" * 5000), DECODE, Code.NOT_JSON, None, "is not JSON"),
    "not utf-8": (spliced(b"m-7", b"m\xff7"), DECODE, Code.NOT_UTF8, None, "at byte"),
    "latin-1": (spliced(b"m-7", "Café".encode("latin-1")), DECODE, Code.NOT_UTF8, None, "at byte"),
    "array": (b"[" + packed() + b"]", DECODE, Code.NOT_AN_OBJECT, None, "is a list"),
    "text": (b'"hello"', DECODE, Code.NOT_AN_OBJECT, None, "is a text"),
    "number": (b"17", DECODE, Code.NOT_AN_OBJECT, None, "is a number"),
    "json null": (b"null", DECODE, Code.NOT_AN_OBJECT, None, "is null"),
    "900 KB": (spliced(b"m-7", b"x" * 900_000), DECODE, Code.TOO_LARGE, None, "batch.max_message_bytes"),
    "deep": (nested(17), DECODE, Code.TOO_DEEP, None, "17 deep"),
    "very deep": (b'{"a":' * 9000 + b"1" + b"}" * 9000, DECODE, Code.TOO_DEEP, None, "9000 deep"),
    "deep without end": (b"[" * 60_000, DECODE, Code.TOO_DEEP, None, "60000 deep"),
    "key twice": (packed()[:-1] + b',"amount":13}', DECODE, Code.DUPLICATE_KEY, "amount", "amount: is given twice"),
    "unknown key twice": (packed()[:-1] + b',"a":1,"a":1}', DECODE, Code.DUPLICATE_KEY, None, "given twice"),
    "nested key twice": (
        packed()[:-1] + b',"attributes":{"a":1,"a":2}}', DECODE, Code.DUPLICATE_KEY, "attributes", "given twice"
    ),
    "no account": (without("account_id"), VALIDATE, Code.MISSING_FIELD, "account_id", "is missing"),
    "empty account": (packed(account_id=""), VALIDATE, Code.BAD_TEXT, "account_id", "is empty"),
    "long account": (packed(account_id="x" * 129), VALIDATE, Code.BAD_TEXT, "account_id", "longer than 128"),
    "null account": (packed(account_id=None), VALIDATE, Code.WRONG_TYPE, "account_id", "is null"),
    "control character": (packed(account_id="a\x00b"), VALIDATE, Code.BAD_TEXT, "account_id", "expected form"),
    "delete character": (spliced(b"m-7", b"m\x7f"), VALIDATE, Code.BAD_TEXT, "merchant_id", "expected form"),
    "numeric account": (packed(account_id=4111), VALIDATE, Code.WRONG_TYPE, "account_id", "a number and not a text"),
    "amount as text": (packed(amount="12.5"), VALIDATE, Code.WRONG_TYPE, "amount", "is a text and not a number"),
    "amount as boolean": (packed(amount=True), VALIDATE, Code.WRONG_TYPE, "amount", "is a boolean"),
    "amount as list": (packed(amount=[12.5]), VALIDATE, Code.WRONG_TYPE, "amount", "is a list"),
    "nan": (spliced(b"12.5", b"NaN"), VALIDATE, Code.NOT_FINITE, "amount", "not a finite number"),
    "infinity": (spliced(b"12.5", b"-Infinity"), VALIDATE, Code.NOT_FINITE, "amount", "not a finite number"),
    "overflow": (spliced(b"12.5", b"1e999"), VALIDATE, Code.NOT_FINITE, "amount", "not a finite number"),
    "nan in latitude": (spliced(b"52.52", b"NaN"), VALIDATE, Code.NOT_FINITE, "latitude", "not a finite number"),
    "nan in attributes": (
        packed()[:-1] + b',"attributes":{"a":NaN}}', VALIDATE, Code.NOT_FINITE, "attributes", "not a finite"
    ),
    "nan undeclared": (packed()[:-1] + b',"z":NaN}', VALIDATE, Code.NOT_FINITE, None, "an undeclared field"),
    "overflow inside": (packed()[:-1] + b',"z":[{"y":[1e999]}]}', VALIDATE, Code.NOT_FINITE, None, "an undeclared"),
    "negative": (packed(amount=-0.01), VALIDATE, Code.OUT_OF_RANGE, "amount", "below the limit of 0"),
    "absurd": (packed(amount=1.1e12), VALIDATE, Code.OUT_OF_RANGE, "amount", "above the limit"),
    "latitude": (packed(latitude=90.1), VALIDATE, Code.OUT_OF_RANGE, "latitude", "above the limit of 90"),
    "longitude": (packed(longitude=-180.5), VALIDATE, Code.OUT_OF_RANGE, "longitude", "below the limit of -180"),
    "unknown currency": (packed(currency="EUX"), VALIDATE, Code.UNKNOWN_CODE, "currency", "ISO 4217"),
    "lowercase currency": (packed(currency="eur"), VALIDATE, Code.UNKNOWN_CODE, "currency", "in capitals"),
    "numeric currency": (packed(currency=978), VALIDATE, Code.WRONG_TYPE, "currency", "a number and not a text"),
    "unknown country": (packed(country="UK"), VALIDATE, Code.UNKNOWN_CODE, "country", "ISO 3166"),
    "mcc": (packed(mcc="541"), VALIDATE, Code.BAD_TEXT, "mcc", "four digits"),
    "mcc in other digits": (packed(mcc="٥٤١١"), VALIDATE, Code.BAD_TEXT, "mcc", "four digits"),
    "channel": (packed(channel="POS"), VALIDATE, Code.BAD_TEXT, "channel", "lowercase word"),
    "ip": (packed(ip="203.0.113.256"), VALIDATE, Code.BAD_TEXT, "ip", "IPv4 or IPv6"),
    "attributes": (packed(attributes={"a": [1]}), VALIDATE, Code.WRONG_TYPE, "attributes", "a list or an object"),
    "attributes as text": (packed(attributes="a"), VALIDATE, Code.WRONG_TYPE, "attributes", "not an object"),
    "no zone": (packed(timestamp="2025-12-31T23:59:58"), VALIDATE, Code.BAD_TIMESTAMP, "timestamp", "RFC 3339"),
    "date only": (packed(timestamp="2025-12-31"), VALIDATE, Code.BAD_TIMESTAMP, "timestamp", "RFC 3339"),
    "30 February": (packed(timestamp="2025-02-30T00:00:00Z"), VALIDATE, Code.BAD_TIMESTAMP, "timestamp", "mome"),
    "24:00": (packed(timestamp="2025-02-03T24:00:00Z"), VALIDATE, Code.BAD_TIMESTAMP, "timestamp", "mome"),
    "zone of 99 h": (packed(timestamp="2025-02-03T20:00:00+99:00"), VALIDATE, Code.BAD_TIMESTAMP, "timestamp", "mome"),
    "1970": (packed(timestamp="1970-01-01T00:00:00Z"), VALIDATE, Code.BAD_TIMESTAMP, "timestamp", "1990 to 2100"),
    "year 9999": (packed(timestamp="9999-12-31T23:59:59Z"), VALIDATE, Code.BAD_TIMESTAMP, "timestamp", "1990 to"),
    "epoch seconds": (packed(timestamp=1767225598), VALIDATE, Code.WRONG_TYPE, "timestamp", "a number and not a text"),
    "future": (
        packed(timestamp="2026-01-01T00:05:00.001Z"), VALIDATE, Code.FUTURE_TIMESTAMP, "timestamp", "300 s later"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_among_good_ones(name: str) -> None:
    value, stage, code, field, words = BAD[name]
    good = [packed(event_id=f"evt-{n}", note='a "quoted": note', z={"k": [n]}) for n in range(6)]
    decoded = decode(*good[:3], value, *good[3:])

    assert decoded.events == [json.loads(one) for one in good]
    assert decoded.indices == [0, 1, 2, 4, 5, 6]
    assert decoded.time_ms.tolist() == [1_767_225_598_125] * 6
    (reject,) = decoded.rejects
    assert (reject.index, reject.stage, reject.code, reject.field) == (3, stage, code, field)
    assert reject.reason.startswith((field or "value") + ":") or reject.reason.startswith("an undeclared field:")
    assert words in reject.reason
    assert SECRET not in reject.reason
    assert "4111" not in reject.reason


def test_every_code_has_its_case() -> None:
    assert {code for _, _, code, _, _ in BAD.values()} == set(RejectCode) - {RejectCode.BAD_VALUE}


def test_all_kinds_of_bad_messages_in_one_batch() -> None:
    good = packed(event_id="good")
    values = [one for value, *_ in BAD.values() for one in (value, good)]
    decoded = decode(*values)
    assert [reject.code for reject in decoded.rejects] == [code for _, _, code, _, _ in BAD.values()]
    assert [reject.index for reject in decoded.rejects] == list(range(0, len(values), 2))
    assert decoded.events == [json.loads(good)] * len(BAD)


def test_crafted_neighbours_cannot_swallow_or_split_an_event() -> None:
    # Joined into an array, these hold as many elements as there are messages.
    first, second, third = packed() + b"," + packed(event_id="stolen"), b'{"x":[{}', b"{}]}"
    json.loads(b"[" + first + b"," + second + b"," + third + b"]")
    decoded = decode(packed(event_id="a"), first, second, third, packed(event_id="b"))
    assert [one["event_id"] for one in decoded.events] == ["a", "b"]
    assert [(reject.index, reject.code) for reject in decoded.rejects] == [(n, RejectCode.NOT_JSON) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "tail",
    [
        b',"amount" :1}', b',"amount"  :1}', b',"amount"\n:1}', b',"amount"\t\t:1}', b',"amount"\r\n:1}',
        b',"amo\\u0075nt":1}',
        b',"z":{"y":1,"y":1}}', b',"z":[[{"y":1,"\\u0079":1}]]}', b',"z\\\\":1,"z\\\\":2}', b',"k":"\\":","amount":1}',
        b',"":1,"":2}', b',"k":"x :","amount" :1}',
    ],
)  # fmt: skip
def test_keys_given_twice_are_seen_however_they_are_spelt(tail: bytes) -> None:
    doubled = packed()[:-1] + tail
    assert len(json.loads(doubled)) <= len(EVENT) + 1
    # Neighbours whose strings look like keys, or whose keys are spaced, must not balance the count.
    around = [packed(note='":":":'), packed()[:-1] + b',"a" :1}', packed(note="{[:")]
    decoded = decode(around[0], doubled, around[1], doubled, around[2])
    assert [reject.index for reject in decoded.rejects] == [1, 3]
    assert {reject.code for reject in decoded.rejects} == {RejectCode.DUPLICATE_KEY}
    assert decoded.events == [json.loads(one) for one in around]


@pytest.mark.parametrize(
    "value",
    [
        json.dumps(event(), indent=2).encode(),
        b" \r\n\t" + packed() + b"\n ",
        packed(note='{"amount":1,"amount":2}'),
        packed(note='\\":\\\\":', other="a :b"),
        packed(z={"a": {"b": [{"c": 1}, {"c": 1}]}}, y=[[], {}, [{}]]),
        packed(note="{[" * 50),
        packed(note="Ünï — 支払い 💳", key_ü=1),
        packed(attributes={"a": 1, "b": None, "c": True, "d": "x", "e": 0.5}),
        packed(attributes=None, latitude=None, ip=None),
        packed(big=12345678901234567890123, deep=[1e308, -0.0, 1e-999]),
        packed()[:-1] + b',"' + b"k" * 20_000 + b'":"' + b"v" * 20_000 + b'"}',
        packed(ip="2001:db8::8:800:200c:417a"),
        packed(currency="HRK", country="XK", amount=0),
    ],
)
def test_unusual_but_valid_messages_pass_unchanged(value: bytes) -> None:
    decoded = decode(packed(), value, packed())
    assert not decoded.rejects
    assert decoded.events[1] == json.loads(value)


def test_values_stay_as_they_were_sent() -> None:
    text = "2025-12-31T23:59:58.1259+00:00"
    (found,) = decode(packed(timestamp=text, unknown={"n": 10, "f": 10.0, "t": "€"}, amount=7)).events
    assert found["timestamp"] == text
    assert json.dumps(found["unknown"], ensure_ascii=False) == '{"n": 10, "f": 10.0, "t": "€"}'
    assert type(found["amount"]) is float
    assert "card_id" not in found


def test_other_wrong_fields_are_named_too() -> None:
    (reject,) = decode(packed(amount=-1, currency="XXZ", zz=1, ip="x")).rejects
    assert reject.reason.startswith("amount: ")
    assert reject.reason.endswith("also wrong: currency, ip")


def test_limits_are_inclusive() -> None:
    decoder = Decoder(Transaction, LIMITS.model_copy(update={"max_message_bytes": 2000, "max_nesting": 4}))
    padding = 2000 - len(packed(pad=""))
    decoded = decode(packed(pad="x" * padding), packed(pad="x" * (padding + 1)), nested(4), nested(5), decoder=decoder)
    assert decoded.indices == [0, 2]
    assert [reject.code for reject in decoded.rejects] == [RejectCode.TOO_LARGE, RejectCode.TOO_DEEP]


@pytest.mark.parametrize("item", ["0", "[]", '{"a":1}', '"[,{"'])
def test_the_limit_of_values_counts_what_is_outside_of_texts(item: str) -> None:
    """Members, items, objects and lists: the event has its own, and each item a comma and what it opens."""
    own = packed(z=0).count(b",") + 2  # its object, and the list in the place of the 0
    each = 1 + (item[0] in "[{")
    most = (LIMITS.max_values - own + 1) // each
    fits, over = (packed(z=[]).replace(b"[]", f"[{','.join([item] * count)}]".encode()) for count in (most, most + 1))
    decoded = decode(fits, over)
    assert decoded.indices == [0]
    assert [(reject.code, reject.reason) for reject in decoded.rejects] == [
        (RejectCode.TOO_LARGE, "value: holds more than 8192 values; send fewer, or raise batch.max_values")
    ]


def test_depth_is_judged_message_by_message() -> None:
    wide = packed(z=[{"a": [1]} for _ in range(40)])
    assert decode(*[wide] * 20).rejects == []
    decoded = decode(*[wide] * 20, nested(17), *[wide] * 20)
    assert [(reject.index, reject.code) for reject in decoded.rejects] == [(20, RejectCode.TOO_DEEP)]


@pytest.mark.parametrize(
    ("text", "depth"),
    [("{}", 1), ('{"a":[{}]}', 3), ('{"[":"[{\\"[[["}', 1), ("[[[", 3), ('"[[[', 0),
     ('{"a\\\\":[1]}', 2), ("1", 0), ("", 0)],
)  # fmt: skip
def test_nesting(text: str, depth: int) -> None:
    assert nesting(text.encode()) == depth


def test_the_future_begins_after_the_tolerance() -> None:
    edge = packed(timestamp="2026-01-01T00:05:00.000Z")
    past = packed(timestamp="2026-01-01T00:05:00.001Z")
    assert decode(edge).indices == [0]
    assert decode(past).rejects[0].code is RejectCode.FUTURE_TIMESTAMP
    # The record's own arrival counts, not the neighbours'.
    later = Message(past, ARRIVED_MS + 1)
    unstamped = Message(past, -1)
    decoded = Decoder(Transaction, LIMITS).decode([Message(past), later, unstamped])
    assert decoded.indices == [1, 2]


def test_an_empty_batch() -> None:
    decoded = decode()
    assert (decoded.events, decoded.indices, decoded.rejects) == ([], [], [])
    assert decoded.time_ms.shape == (0,)
    assert decoded.time_ms.dtype == np.int64
    assert decode(None).times_ms["timestamp"].shape == (0,)


LABEL = {name: EVENT[name] for name in ("event_id", "account_id", "timestamp", "amount", "currency", "merchant_id")} | {
    "fraud": True,
    "labelled_at": "2026-01-01T00:00:00+01:00",
    "source": "chargeback",
}


def test_labels_have_two_times() -> None:
    values = [
        LABEL,
        LABEL | {"labelled_at": "2026-02-01T00:00:00Z"},
        LABEL | {"fraud": "yes"},
        LABEL | {"fraud": False},
    ]
    decoded = decode(*[json.dumps(one).encode() for one in values], decoder=Decoder(Label, LIMITS))
    assert decoded.indices == [0, 3]
    assert decoded.time_ms.tolist() == [1_767_225_598_125] * 2
    assert decoded.times_ms["labelled_at"].tolist() == [ARRIVED_MS - 3_600_000] * 2
    assert [(reject.field, reject.code) for reject in decoded.rejects] == [
        ("labelled_at", RejectCode.FUTURE_TIMESTAMP),
        ("fraud", RejectCode.WRONG_TYPE),
    ]


class Login(BaseModel):
    """Somebody else's domain."""

    model_config = ConfigDict(extra="forbid")
    user: Identifier
    at: Moment
    until: Moment | None = None
    tries: int = Field(0, ge=0)


def test_a_domain_of_the_users_own() -> None:
    decoder = Decoder(Login, LIMITS, time_field="at")
    values = [
        b'{"user":"u","at":"2025-01-01T00:00:00Z","until":null}',
        b'{"user":"u","at":"2025-01-01T00:00:00Z","until":"2025-01-01T00:00:01Z","tries":3}',
        b'{"user":"u","at":"2025-01-01T00:00:00Z","until":"2025-13-01T00:00:01Z"}',
        b'{"user":"u","at":"2025-01-01T00:00:00Z","tries":1.5}',
        b'{"user":"u","at":"2025-01-01T00:00:00Z","secret4111":1}',
    ]
    decoded = decode(*values, decoder=decoder)
    assert decoded.indices == [0, 1]
    assert decoded.times_ms["until"].tolist() == [NO_MOMENT, 1_735_689_601_000]
    found = [(reject.field, reject.code) for reject in decoded.rejects]
    assert found == [
        ("until", RejectCode.BAD_TIMESTAMP),
        ("tries", RejectCode.WRONG_TYPE),
        (None, RejectCode.BAD_VALUE),
    ]
    assert "4111" not in decoded.rejects[2].reason


def test_models_that_cannot_be_honoured_are_refused() -> None:
    class Checked(Login):
        @field_validator("user")
        @classmethod
        def _check(cls, value: str) -> str:
            return value

    class Renamed(Login):
        user: Annotated[str, Field(alias="User")]

    for model, time_field, words in (
        (Checked, "at", "validators"),
        (Renamed, "at", "aliases"),
        (Login, "until", "until"),
    ):
        with pytest.raises(ConfigError, match=words):
            Decoder(model, LIMITS, time_field=time_field)


def test_moments_are_exact_to_the_millisecond() -> None:
    texts = [
        "2025-12-31T23:59:58Z", "2025-12-31T23:59:58.1Z", "2025-12-31T23:59:58.999Z", "2025-12-31T23:59:58.999999999Z",
        "2024-02-29T12:00:00.0005+05:30", "1990-01-01T00:00:00.000-00:00", "2100-12-31T23:59:59.999Z",
    ]  # fmt: skip
    ends = [".000Z", ".100Z", ".999Z", ".999Z", ".000Z", ".000Z", ".999Z"]
    found = moments_ms(texts)
    for text, milliseconds, end in zip(texts, found.tolist(), ends, strict=True):
        moment = datetime.fromisoformat(text).astimezone(UTC)
        assert moment_text(milliseconds) == moment.strftime("%Y-%m-%dT%H:%M:%S") + end
    # UTC alone takes the vectorised way, mixed zones the other.
    assert moments_ms(texts[:4]).tolist() == found[:4].tolist()
    assert moments_ms([None, texts[0], "2025-02-29T00:00:00Z"]).tolist() == [NO_MOMENT, found[0], NO_MOMENT]


def test_code_lists_are_complete() -> None:
    assert len(CURRENCIES) == len(set(CURRENCIES)) == 178 + 14
    assert len(COUNTRIES) == len(set(COUNTRIES)) == 249 + 1
    assert all(len(code) == 3 and code.isupper() for code in CURRENCIES)
    assert all(len(code) == 2 and code.isupper() for code in COUNTRIES)


HOSTILE = {
    "keys given twice": b"{" + b'"a":1,' * 9000 + b'"a":1}',
    "nested keys given twice": packed()[:-1] + b',"x":[' + b'{"a":1,"a":2},' * 4500 + b"1]}",
    "overflowing numbers": packed()[:-1] + b"".join(b',"%x":1e999' % n for n in range(4500)) + b"}",
    "lists in attributes": packed()[:-1] + b',"attributes":{' + b",".join(b'"%x":[]' % n for n in range(5500)) + b"}}",
    "many lists": packed()[:-1] + b',"x":[' + b"[]," * 20_000 + b"[]]}",
    "open string": b'{"a":"' + b'\\"' * 32_000,
    "open objects": b'{"a":' * 13_000,
    "digits": b'{"a":' + b"9" * 65_000 + b"}",
    "long integers": packed()[:-1] + b',"x":[' + b",".join([b"9" * 4200] * 15) + b"]}",
    "look-alikes": packed()[:-1] + b',"x":"' + b'{[\\":' * 12_000 + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_message_takes_long(name: str) -> None:
    """Measured below 10 ms each; anything quadratic would take seconds."""
    value = HOSTILE[name]
    assert 40_000 < len(value) <= LIMITS.max_message_bytes
    decoder = Decoder(Transaction, LIMITS)
    spent = []
    for _ in range(3):
        start = time.process_time()
        decode(value, decoder=decoder)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.1
