"""Why a message could not be scored: a closed list of codes for metrics, and a sentence for the person who mends it.

A reason names the field, what is wrong with it and what is expected. It never repeats a value, nor the
name of a field that the model does not declare: either could be an account or card number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic_core import ErrorDetails

from stream.events.moments import MOMENT_PATTERN


class Stage(StrEnum):
    """Where a message failed."""

    DECODE = "decode"
    """Its bytes are not one JSON object."""
    VALIDATE = "validate"
    """It is an object, but not a valid event."""


class RejectCode(StrEnum):
    """Every reason for a dead letter: a metric label, so the list is closed."""

    NULL_VALUE = "null_value"
    TOO_LARGE = "too_large"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    DUPLICATE_KEY = "duplicate_key"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    BAD_TEXT = "bad_text"
    UNKNOWN_CODE = "unknown_code"
    BAD_TIMESTAMP = "bad_timestamp"
    FUTURE_TIMESTAMP = "future_timestamp"
    BAD_VALUE = "bad_value"


class Finding(NamedTuple):
    """What is wrong with one message. `field` is None when it concerns the message as a whole."""

    stage: Stage
    code: RejectCode
    field: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Reject:
    """A message that goes to the dead-letter topic. `index` is its place in the batch as polled."""

    index: int
    stage: Stage
    code: RejectCode
    field: str | None
    reason: str


WHOLE_MESSAGE = "value"
"""Stands for the field in reasons that concern the message as a whole."""

ONE_OBJECT = "expected one JSON object per message"

_UNDECLARED = "an undeclared field"
_MOST_FIELDS_NAMED = 5
_TYPE_WORDS = {
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
    list: "a list",
    dict: "an object",
}
_EXPECTED_TYPES = {
    "string_type": "a text",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "a boolean",
    "dict_type": "an object",
    "list_type": "a list",
}


def whole_message(code: RejectCode, problem: str, remedy: str) -> Finding:
    """A finding about the bytes and not about a field."""
    return Finding(Stage.DECODE, code, None, f"{WHOLE_MESSAGE}: {problem}; {remedy}")


def of_field(field: str, code: RejectCode, problem: str, remedy: str) -> Finding:
    return Finding(Stage.VALIDATE, code, field, f"{field}: {problem}; {remedy}")


def of_undeclared(code: RejectCode, problem: str) -> Finding:
    return Finding(Stage.VALIDATE, code, None, f"{_UNDECLARED}: {problem}; expected: what JSON can carry onwards")


def field_in_words(key: str, declared: Mapping[str, str]) -> tuple[str | None, str]:
    """A key of a message as (field, words): undeclared keys are not repeated."""
    return (key, key) if key in declared else (None, _UNDECLARED)


def from_validation(errors: Sequence[ErrorDetails], declared: Mapping[str, str]) -> Finding:
    """The first error in words, and the names of the other fields that failed.

    `declared` maps the model's fields to what is expected of them. `errors` carry their inputs, of
    which only the type is used.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return whole_message(RejectCode.NOT_JSON, f"is not JSON ({_parser_words(first)})", ONE_OBJECT)
    if not first["loc"]:
        found = _type_word(first["input"])
        return whole_message(RejectCode.NOT_AN_OBJECT, f"is {found}", ONE_OBJECT)
    field, words = field_in_words(str(first["loc"][0]), declared)
    code, problem = _problem(first)
    expected = declared.get(words, "no such field")
    others = dict.fromkeys(field_in_words(str(error["loc"][0]), declared)[1] for error in errors if error["loc"])
    also = [name for name in others if name != words]
    more = f"; also wrong: {', '.join(also[:_MOST_FIELDS_NAMED])}" if also else ""
    return Finding(Stage.VALIDATE, code, field, f"{words}: {problem}; expected: {expected}{more}")


def _problem(error: ErrorDetails) -> tuple[RejectCode, str]:
    """One error of pydantic as a code and words for what is wrong."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    within = "holds something that " if len(error["loc"]) > 1 else ""
    if kind == "missing":
        return RejectCode.MISSING_FIELD, "is missing"
    if kind == "finite_number":
        return RejectCode.NOT_FINITE, "is not a finite number, or holds one"
    if kind in _EXPECTED_TYPES or (kind == "literal_error" and not isinstance(value, str)):
        expected = _EXPECTED_TYPES.get(kind, "a text")
        return RejectCode.WRONG_TYPE, f"{within}is {_type_word(value)} and not {expected}"
    if kind == "scalar_type":
        return RejectCode.WRONG_TYPE, "holds a list or an object"
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        side = "below" if kind.startswith("greater") else "above"
        return RejectCode.OUT_OF_RANGE, f"{within}is {side} the limit of {next(iter(context.values()))}"
    if kind == "literal_error":
        return RejectCode.UNKNOWN_CODE, f"{within}is not a known code"
    return _problem_of_text(kind, value, context, within)


def _problem_of_text(kind: str, value: Any, context: Mapping[str, Any], within: str) -> tuple[RejectCode, str]:
    if context.get("pattern") == MOMENT_PATTERN:
        return RejectCode.BAD_TIMESTAMP, "is not a time with a zone"
    if kind == "string_too_long":
        return RejectCode.BAD_TEXT, f"{within}is longer than {context['max_length']} characters"
    if kind in ("string_pattern_mismatch", "string_too_short"):
        return RejectCode.BAD_TEXT, f"{within}is empty" if value == "" else f"{within}does not have the expected form"
    return RejectCode.BAD_VALUE, f"{within}is not valid ({kind})"


def _type_word(value: Any) -> str:
    return _TYPE_WORDS.get(type(value), "something else")


def _parser_words(error: ErrorDetails) -> str:
    """The parser's own words: what it met and where. They hold no text of the message."""
    return str(error.get("ctx", {}).get("error", "unreadable"))
