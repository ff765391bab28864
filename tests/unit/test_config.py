"""Settings: where each value came from, and what is said when one is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stream.config import Loaded, Settings, load_settings, mask_url
from stream.errors import ConfigError

SECRET = "hunter2-hunter2"


def load(yaml: str | None = None, tmp_path: Path | None = None, **environ: str) -> Loaded:
    file = None
    if yaml is not None:
        assert tmp_path is not None
        file = tmp_path / "settings.yaml"
        file.write_text(yaml)
    return load_settings(file, environ, {})


def refusal(file: Path | None = None, environ: dict[str, str] | None = None, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ or {}, {name.replace("__", "."): value for name, value in overrides.items()})
    return str(caught.value)


def file_refusal(tmp_path: Path, yaml: str) -> str:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml)
    return refusal(file)


def test_without_anything_the_defaults_hold() -> None:
    loaded = load_settings(None, {}, {})
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {"default"}
    assert "kafka.bootstrap_servers" in loaded.origins
    assert "domain" in loaded.origins


def test_later_sources_win_and_each_value_knows_its_source(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("kafka: {group: file, worker_id: file, linger_ms: 1}\nlog:\n  level: debug\nhttp:\n")
    environ = {
        "RISKSTREAM_KAFKA__GROUP": "environment",
        "RISKSTREAM_KAFKA__WORKER_ID": "environment",
        "RISKSTREAM_REDIS__REQUIRE_NOEVICTION": "false",
        "RISKSTREAM_RECORDS__SAMPLE_RATE": "0.5",
        "RISKSTREAM_SCORING__BUNDLE": "models/champion",
        "UNRELATED": "x",
    }
    loaded = load_settings(file, environ, {"kafka.worker_id": "command", "http.port": 8080, "log.format": None})
    settings, origins = loaded.settings, loaded.origins
    assert (settings.kafka.linger_ms, origins["kafka.linger_ms"]) == (1, f"file {file}")
    assert (settings.kafka.group, origins["kafka.group"]) == ("environment", "environment RISKSTREAM_KAFKA__GROUP")
    assert (settings.kafka.worker_id, origins["kafka.worker_id"]) == ("command", "command line")
    assert (settings.log.format, origins["log.format"]) == ("auto", "default")
    assert settings.log.level == "debug"
    assert settings.http.port == 8080
    assert settings.redis.require_noeviction is False
    assert settings.records.sample_rate == 0.5
    assert settings.scoring.bundle == Path("models/champion")
    assert settings.state_namespace == "environment"


def test_the_environment_names_the_file_and_the_argument_wins(tmp_path: Path) -> None:
    named, given = tmp_path / "named.yaml", tmp_path / "given.yaml"
    named.write_text("kafka: {group: named}")
    given.write_text("kafka: {group: given}")
    environ = {"RISKSTREAM_CONFIG": str(named), "RISKSTREAM_CACHE": "/c", "RISKSTREAM_SHARED_DATA": "/d"}
    assert load_settings(None, environ, {}).settings.kafka.group == "named"
    assert load_settings(given, environ, {}).settings.kafka.group == "given"


def test_an_empty_variable_clears_an_optional_field(tmp_path: Path) -> None:
    loaded = load("scoring: {bundle: some/folder}", tmp_path, RISKSTREAM_SCORING__BUNDLE="")
    assert loaded.settings.scoring.bundle is None


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().kafka.group = "other"


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("batch: {max_event: 5}", ["batch.max_event (", "is no setting", "did you mean batch.max_events"]),
        ("kafak: {group: x}", ["kafak (", "is no setting", "did you mean kafka?"]),
        ("group: x", ["group (", "did you mean kafka.group?"]),
        ("batch: {max_events: many}", ["batch.max_events = 'many'", "a whole number from 1 to 10000"]),
        ("batch: {max_events: 0}", ["batch.max_events = 0", "a whole number from 1 to 10000"]),
        ("batch: {max_events: true}", ["batch.max_events = True", "a whole number from 1 to 10000"]),
        ("batch: {max_events: [1]}", ["batch.max_events = [1]", "a whole number from 1 to 10000"]),
        ("batch: {max_events: }", ["batch.max_events = None", "a whole number from 1 to 10000"]),
        ("records: {sample_rate: 1.5}", ["records.sample_rate = 1.5", "a number from 0 to 1"]),
        ("log: {level: loud}", ["log.level = 'loud'", "one of debug, info, warning, error"]),
        ("redis: {require_noeviction: maybe}", ["redis.require_noeviction = 'maybe'", "true or false"]),
        ("kafka: {group: 12}", ["kafka.group = 12", "text"]),
        ("kafka: {worker_id: a b}", ["kafka.worker_id = 'a b'", "text that matches"]),
        ("kafka: {bootstrap_servers: localhost}", ["kafka.bootstrap_servers = 'localhost'", "host:port"]),
        ("topics: {alerts: a/b}", ["topics.alerts = 'a/b'"]),
        ("domain: 3", ["domain = 3"]),
        ("redis: none", ["redis (", "is a section"]),
        ("- a", ["write sections and fields"]),
        ("kafka:\n  group: a\n  group: b", ["line 3", "group is given twice"]),
        ("kafka: {group: a", ["line 1", "not valid YAML"]),
        ("kafka: !!python/object/apply:os.getcwd []", ["line 1", "not valid YAML"]),
    ],
)
def test_a_wrong_file_names_field_value_origin_and_what_is_allowed(tmp_path: Path, yaml: str, said: list[str]) -> None:
    message = file_refusal(tmp_path, yaml)
    assert "settings.yaml" in message
    for part in said:
        assert part in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "absent.yaml cannot be read" in refusal(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"kafka: {group: \xe9}")
    assert "latin.yaml is not UTF-8" in refusal(tmp_path / "latin.yaml")


def test_a_wrong_variable_or_argument_names_itself() -> None:
    message = refusal(environ={"RISKSTREAM_KAFKA__BOOTSTRAP_SERVER": "x:1"})
    assert "RISKSTREAM_KAFKA__BOOTSTRAP_SERVER (environment) is no setting" in message
    assert "did you mean RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS" in message
    assert "did you mean RISKSTREAM_CONFIG " in refusal(environ={"RISKSTREAM_CONFG": "x"})
    assert "RISKSTREAM_kafka__group" in refusal(environ={"RISKSTREAM_kafka__group": "x"})
    message = refusal(environ={"RISKSTREAM_HTTP__PORT": "99999"})
    assert "http.port = '99999' (environment RISKSTREAM_HTTP__PORT)" in message
    assert "http.port = -1 (command line)" in refusal(http__port=-1)
    assert "kafka.grup (command line) is no setting; did you mean kafka.group?" in refusal(kafka__grup="x")


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("log: {level: loud}\nnonsense: 1")
    message = refusal(file, {"RISKSTREAM_NONSENSE": "x"}, http__port=-1)
    assert message.count("\n- ") == 4


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        ({"kafka.heartbeat_interval_ms": 3_334}, ["kafka.heartbeat_interval_ms", "kafka.session_timeout_ms"]),
        ({"kafka.transaction_timeout_ms": 120_000}, ["kafka.transaction_timeout_ms", "kafka.max_poll_interval_ms"]),
        ({"kafka.session_timeout_ms": 120_000}, ["kafka.session_timeout_ms", "kafka.max_poll_interval_ms"]),
        ({"redis.timeout_ms": 40_000}, ["redis.timeout_ms", "kafka.max_poll_interval_ms"]),
        ({"state.horizon_days": 60}, ["redis.row_ttl_days", "state.horizon_days"]),
        ({"batch.max_message_bytes": 10_000_000}, ["batch.max_message_bytes", "kafka.fetch_max_bytes"]),
        ({"topics.alerts": "labels"}, ["topics.alerts", "topics.labels"]),
        ({"kafka.security_protocol": "SASL_SSL"}, ["kafka.sasl_username", "kafka.sasl_password"]),
        ({"kafka.ssl_ca_file": "/no/such/file"}, ["kafka.ssl_ca_file", "no such file"]),
        ({"kafka.ssl_ca_file": __file__}, ["kafka.ssl_ca_file", "kafka.security_protocol = 'PLAINTEXT'"]),
        ({"redis.ssl_ca_file": __file__}, ["redis.ssl_ca_file", "redis.url = 'redis://127.0.0.1:6379/0'"]),
        ({"redis.ssl_cert_file": __file__}, ["redis.ssl_cert_file", "redis.ssl_key_file"]),
    ],
)
def test_fields_that_contradict_each_other_are_named_together(overrides: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {}, overrides)
    for field in fields:
        assert field in str(caught.value)
    assert "(command line)" in str(caught.value)


def test_bounds_themselves_are_allowed() -> None:
    at_the_bound = {"kafka.heartbeat_interval_ms": 3_333, "kafka.transaction_timeout_ms": 119_999}
    at_the_bound |= {"state.horizon_days": 59, "batch.max_message_bytes": 8_388_608, "redis.timeout_ms": 39_999}
    load_settings(None, {}, at_the_bound)
    load_settings(None, {}, {"redis.url": "rediss://h", "redis.ssl_ca_file": __file__})
    load_settings(None, {}, {"kafka.security_protocol": "SSL", "kafka.ssl_ca_file": __file__})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis.url", f"redis://:{SECRET}#1@host"),
        ("redis.url", f"redis://:{SECRET}/1@host"),
        ("redis.url", f"redis://user:12?{SECRET}@host"),
        ("redis.url", f"http://:{SECRET}@host"),
        ("redis.url", f"redis://:{SECRET}@host:port"),
        ("redis.url", f"rediss://:{SECRET}@host?ssl_cert_reqs=none"),
        ("redis.url", f"rediss://:{SECRET}@host?ssl_check_hostname=false"),
        ("redis.key_secret", "hunter2"),
        ("kafka.bootstrap_servers", f"kafka://user:{SECRET}@host"),
        ("kafka.sasl_pasword", SECRET),
        ("kafka.sasl_password", ["hunter2"]),
    ],
)
def test_no_refusal_shows_a_secret(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {}, {name: value})
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None or "hunter2" not in str(caught.value.__cause__)
    section, _, field = name.partition(".")
    assert "hunter2" not in file_refusal(tmp_path, f"{section}: {{{field}: [{value!r}")


def test_a_description_of_everything_without_secrets() -> None:
    overrides = {
        "kafka.sasl_password": SECRET,
        "kafka.sasl_username": "worker",
        "redis.key_secret": SECRET,
        "redis.url": f"rediss://user:{SECRET}@host:6380/2?ssl_password={SECRET}&db=3",
    }
    rows = {row.field: row for row in load_settings(None, {}, overrides).describe()}
    assert rows["kafka.sasl_password"].value == "*****"
    assert rows["kafka.sasl_username"].value == "worker"
    assert rows["redis.key_secret"].value == "*****"
    assert rows["redis.url"].value == "rediss://user:*****@host:6380/2?ssl_password=*****&db=3"
    assert rows["kafka.ssl_ca_file"].value == ""
    assert rows["redis.require_noeviction"].value == "true"
    assert rows["redis.url"].origin == "command line"
    assert rows["batch.max_events"].allowed == "a whole number from 1 to 10000"
    assert "hunter2" not in str(rows)


def test_every_setting_is_described() -> None:
    rows = load_settings(None, {}, {}).describe()
    assert len(rows) > 50
    for row in rows:
        assert row.description, row.field
        assert row.allowed, row.field


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:p@host", "redis://:*****@host"),
        ("redis://u:p%40q@host", "redis://u:*****@host"),
        ("unix:///run/redis.sock?password=p&db=1", "unix:///run/redis.sock?password=*****&db=1"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_settings_are_read_without_heavy_modules() -> None:
    code = "import sys; import stream.config as c; c.load_settings(None, {}, {}); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "numpy", "redis", "kafka", "yaml"}.isdisjoint(modules)
