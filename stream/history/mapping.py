"""The mapping: a YAML file in which a user says which column of a history file is what.

    fields:
      event_id: trans_num                           # a column's name alone
      timestamp: {column: unix_time, unit: s}
      amount: {column: amt}
      currency: {constant: USD}
      mcc: {column: category, values: {travel: "4722"}, otherwise: "5999"}
    label: {column: is_fraud, positive: ["1"], delay: 7d}

All scalars are read as text, so `NO` is Norway and a merchant code keeps its zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stream.errors import ConfigError
from stream.events.fields import Word
from stream.events.moments import NO_MOMENT, day_or_moment_ms
from stream.features.spec import window_ms
from stream.history.batch import WireContract

TimeUnit = Literal["ns", "us", "ms", "s", "min", "h", "d", "iso"]


class _Part(BaseModel):
    """Frozen; an unknown word is an error, so that a misspelt one cannot be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _column_name_alone(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value


class TextSource(_Part):
    """Where a text field comes from: one of column, constant, row_number."""

    column: str | None = Field(None, min_length=1, description="a column of the file")
    constant: str | None = Field(None, min_length=1, description="one value for every event")
    row_number: str | None = Field(None, description="a prefix: the value is the prefix and the row's number")
    values: dict[str, str] | None = Field(None, description="translates the column's values")
    otherwise: str | None = Field(None, min_length=1, description="for values that are not in `values`")

    @model_validator(mode="after")
    def _one_source(self) -> TextSource:
        if sum(source is not None for source in (self.column, self.constant, self.row_number)) != 1:
            raise ValueError("give exactly one of column, constant and row_number")
        if self.values is not None and self.column is None:
            raise ValueError("values translates a column: name the column")
        if self.otherwise is not None and self.values is None:
            raise ValueError("otherwise goes with values")
        return self


class TimeSource(_Part):
    """A column of times. A column that has a timestamp type (Parquet) needs no unit."""

    column: str = Field(min_length=1)
    unit: TimeUnit | None = Field(None, description="of a number: ns to d since 1970; iso for ISO 8601 text")
    since: str = Field("1970-01-01", description="the moment that numbers count from: a date, or a time with a zone")
    format: str | None = Field(None, description="strptime format of a text, such as '%d/%m/%Y %H:%M:%S'")
    zone: str = Field("UTC", description="IANA zone of times that name none, such as Europe/Paris")

    @model_validator(mode="after")
    def _one_way(self) -> TimeSource:
        if self.unit is not None and self.format is not None:
            raise ValueError("give a unit or a format, not both")
        if self.since_ms == NO_MOMENT:
            raise ValueError("since: write a date (2020-07-01) or a time with a zone (2020-07-01T00:00:00Z)")
        if self.since_ms and self.unit in (None, "iso"):
            raise ValueError("since goes with a unit of numbers")
        return self

    @property
    def since_ms(self) -> int:
        """Milliseconds since 1970; NO_MOMENT where the text is none."""
        return day_or_moment_ms(self.since)


class NumberSource(_Part):
    """A column of numbers, or one number for every event."""

    column: str | None = Field(None, min_length=1)
    constant: float | None = None
    unit: Literal["major", "minor"] = Field("major", description="minor: divide by 10 to the power of minor_digits")
    minor_digits: int = Field(2, ge=0, le=4, description="decimals of the currency: 2 for EUR, 0 for JPY")
    negate: bool = Field(False, description="change the sign: exports that write payments as negative amounts")

    @model_validator(mode="after")
    def _one_source(self) -> NumberSource:
        if (self.column is None) == (self.constant is None):
            raise ValueError("give exactly one of column and constant")
        return self


class LabelSource(_Part):
    """What is known of fraud: the column, its values, and when a verdict became known."""

    column: str = Field(min_length=1)
    positive: tuple[str, ...] = Field(min_length=1, description="values that mean fraud")
    negative: tuple[str, ...] | None = Field(
        None, description="values that mean genuine ('': empty); absent: all others but empty"
    )
    known: TimeSource | None = Field(None, description="column with the time when the verdict became known")
    delay: str = Field(description="event time plus this, such as 7d, where `known` is absent or empty")
    source: Word = Field("chargeback", description="who gave the verdicts")

    @field_validator("positive", "negative", mode="before")
    @classmethod
    def _one_value_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("delay")
    @classmethod
    def _a_span(cls, value: str) -> str:
        try:
            window_ms(value)
        except ConfigError as error:
            raise ValueError("write a number and a unit of s, min, h or d, such as 7d") from error
        return value

    @property
    def delay_ms(self) -> int:
        return window_ms(self.delay)


class CsvOptions(BaseModel):
    """How a CSV file is written. A name that ends in .gz is unpacked on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delimiter: str = Field(",", min_length=1, max_length=1)
    encoding: str = "utf-8"
    decimal: Literal[".", ","] = Field(".", description="the decimal sign of numbers")
    columns: tuple[str, ...] | None = Field(None, description="column names of a file without a header line")


class Mapping(BaseModel):
    """A whole mapping file. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal["1"] = "1"
    format: Literal["csv", "parquet"] | None = Field(None, description="absent: by the file's name")
    csv: CsvOptions = CsvOptions()
    fields: dict[str, Any] = Field(description="our field -> its source")
    attributes: tuple[str, ...] | Literal["rest"] = Field(
        (), description="columns kept in `attributes`; rest: all others"
    )
    label: LabelSource | None = None
    sort: bool = Field(False, description="sort by time, in memory; without it a file out of order is refused")
    on_bad_row: Literal["stop", "drop"] = Field("stop", description="drop: leave it out and count it")


_Source = TypeVar("_Source", TextSource, TimeSource, NumberSource)


class BoundMapping:
    """A mapping checked against the wire contract: the sources by their kind.

    `name` is the mapping file's, for messages.
    """

    def __init__(self, mapping: Mapping, contract: WireContract, name: str = "mapping") -> None:
        self.mapping = mapping
        self.contract = contract
        self.name = name
        known = {contract.time_field, *contract.text_fields, *contract.number_fields}
        for field in mapping.fields:
            if field not in known:
                raise ConfigError(
                    f"{name}: fields.{field}: there is no such field; "
                    f"the fields are {', '.join(sorted(known))}. Other columns can go to `attributes`"
                )
        self.text = {f: self._source(f, TextSource) for f in contract.text_fields if f in mapping.fields}
        self.numbers = {f: self._source(f, NumberSource) for f in contract.number_fields if f in mapping.fields}
        self.missing = sorted(contract.required - mapping.fields.keys())
        self.time = None if contract.time_field in self.missing else self._source(contract.time_field, TimeSource)

    def _source(self, field: str, kind: type[_Source]) -> _Source:
        try:
            return kind.model_validate(self.mapping.fields[field])
        except ValidationError as error:
            raise ConfigError(f"{self.name}: {_first_error(f'fields.{field}', error)}") from error

    def check_columns(self, columns: list[str], file: str) -> None:
        """Refuses when a required field has no source, or when a column is not in the file."""
        has = f"{file} has the columns {', '.join(columns)}"
        if self.missing:
            raise ConfigError(
                f"{self.name}: no source for the required {', '.join(self.missing)}. "
                f"Name a column, or give a constant ({{constant: ...}}). {has}"
            )
        for where, column in self.named_columns():
            if column not in columns:
                raise ConfigError(f"{self.name}: {where}: no column {column!r}. {has}")

    def named_columns(self) -> list[tuple[str, str]]:
        """(place in the mapping, column) for every column that the mapping names."""
        sources: dict[str, TextSource | NumberSource | TimeSource] = {**self.text, **self.numbers}
        if self.time is not None:
            sources[self.contract.time_field] = self.time
        named = [(f"fields.{field}", source.column) for field, source in sources.items() if source.column is not None]
        if self.mapping.attributes != "rest":
            named += [("attributes", column) for column in self.mapping.attributes]
        label = self.mapping.label
        if label is not None:
            named.append(("label.column", label.column))
            if label.known is not None:
                named.append(("label.known", label.known.column))
        return named

    def attribute_columns(self, columns: list[str]) -> list[str]:
        """The columns that become attributes: those named, or all that nothing else uses."""
        if self.mapping.attributes != "rest":
            return list(self.mapping.attributes)
        used = {column for _, column in self.named_columns()}
        return [column for column in columns if column not in used]


def load_mapping(path: Path, contract: WireContract) -> BoundMapping:
    """Reads and checks a mapping file. Blocks on the file. ConfigError names file, field and remedy."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f"mapping {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"mapping {path}: not YAML: {error}") from error
    try:
        mapping = Mapping.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"mapping {path}: {_first_error('', error)}") from error
    return BoundMapping(mapping, contract, f"mapping {path}")


def _first_error(place: str, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    parts = [place, *(str(part) for part in first["loc"])]
    return f"{'.'.join(part for part in parts if part) or 'the file'}: {first['msg']}"
