"""Where values come from, and what is said when one is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from stream.config.settings import Section, Settings
from stream.errors import ConfigError

ENV_PREFIX = "RISKSTREAM_"
ENV_FILE_VARIABLE = "RISKSTREAM_CONFIG"
OTHER_VARIABLES = frozenset({ENV_FILE_VARIABLE, "RISKSTREAM_CACHE", "RISKSTREAM_SHARED_DATA"})
"""Variables with the prefix that are no settings."""

_MASK = "*****"


class Setting(NamedTuple):
    """One row of `riskstream config`. Secrets are masked, and `value` is empty where nothing is set."""

    field: str
    value: str
    origin: str
    description: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each dotted field where its value came from."""

    settings: Settings
    origins: Mapping[str, str]

    def describe(self) -> list[Setting]:
        """Every setting in the order of its declaration."""
        return [
            Setting(name, _shown(_value(self.settings, name)), self.origins[name], leaf.description, leaf.allowed)
            for name, leaf in _leaves().items()
        ]


def load_settings(file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Loaded:
    """Reads and checks all settings. ConfigError lists everything that is wrong, each with field and origin.

    `overrides` are the command line's: dotted field -> value; None means not given.
    """
    leaves = _leaves()
    problems: list[str] = []
    given: dict[str, tuple[Any, str]] = {}
    if file is None and environ.get(ENV_FILE_VARIABLE):
        file = Path(environ[ENV_FILE_VARIABLE])
    if file is not None:
        from stream.config.yaml_file import read_yaml  # noqa: PLC0415

        for name, value in _flat(read_yaml(file), "", f"file {file}", problems):
            given[name] = (value, f"file {file}")
    given.update(_from_environment(environ, problems))
    for name, value in overrides.items():
        if name not in leaves:
            problems.append(f"{name} (command line) is no setting{_close(name, leaves)}")
        elif value is not None:
            given[name] = (value, "command line")
    settings = _validated(given, problems)
    origins = {name: given[name][1] if name in given else "default" for name in leaves}
    if settings is not None:
        for fields, rule in _conflicts(settings):
            what = ", ".join(f"{name} = {_shown(_value(settings, name))!r} ({origins[name]})" for name in fields)
            problems.append(f"{what}: {rule}")
    if problems or settings is None:
        raise ConfigError("wrong settings:\n" + "\n".join(f"- {problem}" for problem in problems))
    return Loaded(settings, origins)


class _Leaf(NamedTuple):
    description: str
    allowed: str
    secret: bool
    optional: bool
    number: bool


@cache
def _leaves() -> dict[str, _Leaf]:
    """Dotted name -> what is known of the field, in the order of declaration."""
    leaves: dict[str, _Leaf] = {}
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            leaves |= {f"{name}.{inner}": _leaf(of_inner) for inner, of_inner in section.model_fields.items()}
        else:
            leaves[name] = _leaf(field)
    return leaves


def _leaf(field: FieldInfo) -> _Leaf:
    # By hand: pydantic's JSON schema says the same, and costs every start 50 ms.
    kinds = get_args(field.annotation) if get_origin(field.annotation) is UnionType else (field.annotation,)
    kind, optional = kinds[0], type(None) in kinds
    number = kind in {int, float}
    allowed = _allowed(kind, field.metadata) + (", or nothing" if optional else "")
    return _Leaf(field.description or "", allowed, kind is SecretStr, optional, number)


def _allowed(kind: Any, metadata: Sequence[Any]) -> str:
    def bound(name: str) -> Any:
        return next((value for item in metadata if (value := getattr(item, name, None)) is not None), None)

    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind in {int, float}:
        noun = "a whole number" if kind is int else "a number"
        low, high = bound("ge"), bound("le")
        return noun + (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
    if kind is str:
        return f"text that matches {pattern}" if (pattern := bound("pattern")) else "text"
    return {bool: "true or false", Path: "a path", SecretStr: "text"}[kind]


def _flat(content: Mapping[Any, Any], prefix: str, origin: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    leaves = _leaves()
    sections = {name.partition(".")[0] for name in leaves if "." in name}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in leaves:
            yield name, value
        elif name not in sections:
            problems.append(f"{name} ({origin}) is no setting{_close(name, [*leaves, *sections])}")
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.", origin, problems)
        elif value is not None:
            problems.append(f"{name} ({origin}) is a section: write its fields below it, indented")


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, tuple[Any, str]]:
    variables = {ENV_PREFIX + name.replace(".", "__").upper(): (name, leaf) for name, leaf in _leaves().items()}
    given = {}
    for variable in sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES):
        if variable not in variables:
            problems.append(f"{variable} (environment) is no setting{_close(variable, [*variables, *OTHER_VARIABLES])}")
            continue
        name, leaf = variables[variable]
        empty = leaf.optional and not environ[variable]
        given[name] = (None if empty else environ[variable], f"environment {variable}")
    return given


def _validated(given: Mapping[str, tuple[Any, str]], problems: list[str]) -> Settings | None:
    leaves = _leaves()
    nested: dict[str, Any] = {}
    for name, (value, origin) in given.items():
        if isinstance(value, bool) and leaves[name].number:
            problems.append(f"{name} = {value} ({origin}): allowed: {leaves[name].allowed}")
            continue
        section, _, field = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[field] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False):
            name = ".".join(str(part) for part in detail["loc"][:2])
            value, origin = given[name]
            shown = _MASK if leaves[name].secret or "://" in str(value) else repr(value)[:80]
            reason = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{name} = {shown} ({origin}): {reason}; allowed: {leaves[name].allowed}")
        return None


def _conflicts(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Fields that are right alone and wrong together, with the rule."""
    kafka, redis = settings.kafka, settings.redis
    if kafka.heartbeat_interval_ms * 3 > kafka.session_timeout_ms:
        yield (
            ("kafka.heartbeat_interval_ms", "kafka.session_timeout_ms"),
            "the heartbeat must be at most a third of the session timeout, so that two may be lost",
        )
    for shorter in ("session_timeout_ms", "transaction_timeout_ms"):
        if getattr(kafka, shorter) >= kafka.max_poll_interval_ms:
            yield (f"kafka.{shorter}", "kafka.max_poll_interval_ms"), "the poll interval must be longer"
    if 3 * redis.timeout_ms >= kafka.max_poll_interval_ms:
        yield ("redis.timeout_ms", "kafka.max_poll_interval_ms"), "three tries of Redis must fit into one turn"
    if redis.row_ttl_days <= settings.state.horizon_days:
        yield ("redis.row_ttl_days", "state.horizon_days"), "rows must outlive the horizon"
    if settings.batch.max_message_bytes > kafka.fetch_max_bytes:
        yield ("batch.max_message_bytes", "kafka.fetch_max_bytes"), "one fetch must hold one message"
    topics = settings.topics.model_dump()
    for name, topic in topics.items():
        if same := [other for other in topics if topics[other] == topic and other > name]:
            yield tuple(f"topics.{each}" for each in (name, *same)), "each topic must have a name of its own"
    if kafka.security_protocol.startswith("SASL_"):
        for name in ("sasl_username", "sasl_password"):
            if getattr(kafka, name) is None:
                yield (f"kafka.{name}", "kafka.security_protocol"), f"{kafka.security_protocol} needs it"
    yield from _wrong_files(settings, "kafka", "kafka.security_protocol", kafka.security_protocol.endswith("SSL"))
    yield from _wrong_files(settings, "redis", "redis.url", redis.url.get_secret_value().startswith("rediss://"))


def _wrong_files(
    settings: Settings, section: str, switch: str, encrypted: bool
) -> Iterator[tuple[tuple[str, ...], str]]:
    for kind in ("ca", "cert", "key"):
        name = f"{section}.ssl_{kind}_file"
        file = _value(settings, name)
        if file is not None and not file.is_file():
            yield (name,), "there is no such file"
        if file is not None and not encrypted:
            yield (name, switch), "the file is of use only when the connection is encrypted"
    pair = (f"{section}.ssl_cert_file", f"{section}.ssl_key_file")
    if (_value(settings, pair[0]) is None) != (_value(settings, pair[1]) is None):
        yield pair, "certificate and key go together"


def _value(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        return mask_url(text) if "://" in text else _MASK
    return str(value).lower() if isinstance(value, bool) else str(value)


def mask_url(url: str) -> str:
    """The URL without its password, also where the password is an option behind '?'."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    options = [
        f"{key}={_MASK if 'pass' in key.lower() else value}"
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    netloc = f"{name}{colon}{_MASK if colon else ''}{at}{host}"
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if options else ''}{'&'.join(options)}"


def _close(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=2, cutoff=0.75)
    if not matches:
        last = name.rpartition(".")[2]
        matches = [other for other in known if other.rpartition(".")[2] == last]
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
