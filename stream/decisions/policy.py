"""The decision policy: a frozen value read from YAML. What it decides is computed in `decider.py`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stream.errors import ConfigError
from stream.events.records import MAX_SCORE

Probability = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[int, Field(ge=0, le=MAX_SCORE)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Operator = Literal[">", ">=", "<", "<=", "==", "in"]


def _version_text(value: Any) -> Any:
    """YAML reads 2026-11-01 as a date and 3 as a number; both are fine versions."""
    return str(value) if isinstance(value, int | float | date) and not isinstance(value, bool) else value


class Part(BaseModel):
    """Frozen; an unknown field is an error, so that a misspelt rule cannot be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Thresholds(Part):
    """Probabilities at which the decision changes, both inclusive."""

    review: Probability = Field(description="from here on: review")
    decline: Probability = Field(description="from here on: decline")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.decline < self.review:
            raise ValueError("decline must not be below review")
        return self


class Scale(Part):
    """The scores that stand for the two thresholds."""

    review: Annotated[int, Field(ge=1, le=MAX_SCORE)] = Field(600, description="score of the review threshold")
    decline: Annotated[int, Field(ge=1, le=MAX_SCORE)] = Field(850, description="score of the decline threshold")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.decline <= self.review:
            raise ValueError("decline must be above review")
        return self


class Band(Part):
    """A named range of scores, up to where the next band begins."""

    name: Name
    from_score: Score = Field(description="its lowest score")


class ValueList(Part):
    """Exact values of one field that block or allow an event."""

    name: Name
    kind: Literal["block", "allow"] = Field(description="block: decline; allow: approve below allow_below_score")
    field: str = Field(min_length=1, description="field of the event, such as device_id")
    values: frozenset[str] = Field(frozenset(), repr=False, description="the values, inline")
    file: Path | None = Field(None, description="further values, one per line; relative to the policy's folder")
    reason: str = Field(min_length=1, max_length=300, description="what alerts say when it applies")


class Condition(Part):
    """One comparison. A missing value, or one of another type, never satisfies it."""

    field: str | None = Field(None, description="a field of the event, as sent")
    column: str | None = Field(None, description="a column of the aggregates, such as count_10min")
    op: Operator
    value: Number | str | bool | tuple[Number | str, ...] = Field(repr=False)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if (self.field is None) == (self.column is None):
            raise ValueError("give either field or column")
        is_number = isinstance(self.value, float | int) and not isinstance(self.value, bool)
        if self.op == "in" and not isinstance(self.value, tuple):
            raise ValueError("value must be a list for the operator 'in'")
        if self.op in (">", ">=", "<", "<=") and not is_number:
            raise ValueError(f"value must be a number for the operator {self.op!r}")
        if self.op == "==" and isinstance(self.value, tuple):
            raise ValueError("value must be one value for the operator '=='; for several use 'in'")
        if self.column is not None:
            members = self.value if isinstance(self.value, tuple) else (self.value,)
            if any(isinstance(member, str | bool) for member in members):
                raise ValueError("a column holds numbers: compare it with numbers")
        return self


class Rule(Part):
    """Raises the decision when all conditions hold. A rule never lowers one: allow lists do."""

    name: Name
    when: tuple[Condition, ...] = Field(min_length=1)
    decision: Literal["review", "decline"]
    reason: str = Field(min_length=1, max_length=300, description="what alerts say when it applies")


_DEFAULT_BANDS = (
    Band(name="low", from_score=0),
    Band(name="guarded", from_score=300),
    Band(name="elevated", from_score=600),
    Band(name="severe", from_score=850),
)


class Policy(Part):
    """How probabilities, lists and rules become decisions."""

    version: Annotated[str, BeforeValidator(_version_text), Field(min_length=1, max_length=80)]
    thresholds: Thresholds | None = Field(None, description="without them: the bundle's")
    scale: Scale = Scale(review=600, decline=850)
    bands: tuple[Band, ...] = Field(_DEFAULT_BANDS, min_length=1, max_length=20)
    allow_below_score: Annotated[int, Field(ge=0, le=MAX_SCORE + 1)] = Field(
        950, description="from this score on an allow list no longer helps; 1000: it always does"
    )
    lists: tuple[ValueList, ...] = ()
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bounds = [band.from_score for band in self.bands]
        if bounds[0] != 0 or bounds != sorted(set(bounds)):
            raise ValueError("bands: the first must begin at 0, each next one higher")
        for kind, parts in (("bands", self.bands), ("lists", self.lists), ("rules", self.rules)):
            names = [part.name for part in parts]
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{kind}: the name {repeated[0]!r} is used twice")
        return self


DEFAULT_POLICY = Policy(version="default")
"""The bundle's thresholds, no lists and no rules."""


def load_policy(path: Path) -> Policy:
    """Reads a policy and the files of its lists. ConfigError names the file and the field. Blocks for reads."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy {path}: cannot be read ({_short(error)})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"policy {path}: not YAML{place}; quote operators and texts with colons") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"policy {path}: must hold fields such as version, thresholds, lists and rules")
    try:
        policy = Policy.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"policy {path}: " + "; ".join(_in_words(error))) from None
    lists = tuple(_with_file(item, path.parent) for item in policy.lists)
    return policy.model_copy(update={"lists": lists})


def _with_file(values: ValueList, folder: Path) -> ValueList:
    if values.file is None:
        return values
    path = folder / values.file
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"list {values.name!r}: {path} cannot be read ({_short(error)})") from None
    read = {line for line in lines if line and not line.startswith("#")}
    return values.model_copy(update={"values": values.values | read})


def _in_words(error: ValidationError) -> list[str]:
    """One line per error: where, and what is allowed. Never the value: lists hold account ids."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"]) or "policy"
        lines.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
    return list(dict.fromkeys(lines))


def _short(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or "no such file") if isinstance(error, OSError) else "not UTF-8"
