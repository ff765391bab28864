"""docker-compose.yml: the specification's schema, hardening, and that all it names is there and means what it says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from jsonschema import Draft7Validator
from prometheus_client import CollectorRegistry

from stream.config import ENV_PREFIX, HttpSettings, Settings, load_settings
from stream.errors import ConfigError
from stream.health import HealthServer, Status
from stream.simulate.simulation import LABEL_MATURITY_DAYS, Simulation
from stream.stack import RedisServer
from stream.state.redis import RedisStore
from tests.deploy import compose
from tests.unit.test_docs import wrong_in

SCHEMA = json.loads((Path(__file__).parent / "data" / "compose-spec.json").read_text(encoding="utf-8"))
FILE = compose.load()
SERVICES: dict[str, Any] = FILE["services"]
OURS = [name for name, service in SERVICES.items() if compose.is_ours(service)]


def settings_of(name: str) -> Settings:
    """The settings that the program reads in this service; an unknown or wrong one raises."""
    return load_settings(None, compose.environment(SERVICES[name]), {}).settings


def test_follows_the_compose_specification() -> None:
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(FILE)] == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda services: services["redis"].update(healthchek={}),
        lambda services: services["kafka"].update(ports="9092"),
        lambda services: services["topics"]["depends_on"]["kafka"].update(condition="service_ready"),
        lambda services: services["worker-0"].update(cap_drop="ALL"),
    ],
)
def test_the_schema_finds_what_is_wrong(spoil: Callable[[dict[str, Any]], None]) -> None:
    spoilt = copy.deepcopy(FILE)
    spoil(spoilt["services"])
    assert list(Draft7Validator(SCHEMA).iter_errors(spoilt))


def test_every_service_is_hardened() -> None:
    assert [text for name, service in SERVICES.items() for text in compose.weaknesses(name, service)] == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image": "redis:latest"}, "its image has no version"),
        ({"image": "redis"}, "its image has no version"),
        ({"read_only": False}, "its root file system can be written to"),
        ({"cap_drop": []}, "it keeps capabilities"),
        ({"security_opt": []}, "it may gain privileges"),
        ({"user": "0:0"}, "it may run as root"),
        ({"user": None}, "it may run as root"),
        ({"deploy": {}}, "it has no limits"),
        ({"ports": ["6379:6379"]}, "a port is open beyond loopback"),
        ({"ports": ["127.0.0.1:6379:6379"], "healthcheck": {}}, "nothing asks after its health"),
        ({"network_mode": "host"}, "it is privileged"),
    ],
)
def test_hardening_that_is_missing_is_found(change: dict[str, Any], complaint: str) -> None:
    assert compose.weaknesses("redis", {**SERVICES["redis"], **change}) == [f"redis: {complaint}"]


def test_the_start_order_can_come_about() -> None:
    assert compose.wrong_waits(SERVICES) == []
    for worker in ("worker-0", "worker-1"):
        assert SERVICES[worker]["depends_on"].keys() == {"kafka", "redis", "topics", "model"}


@pytest.mark.parametrize("name", ["kafka", "redis", "topics", "model"])
def test_a_start_order_that_cannot_come_about_is_found(name: str) -> None:
    spoilt = copy.deepcopy(SERVICES)
    spoilt[name] |= {"restart": "always", "healthcheck": {"disable": True}}
    assert compose.wrong_waits(spoilt)


def test_volumes_are_named_and_files_are_there() -> None:
    used = set()
    for name, service in SERVICES.items():
        for source, place, mode in compose.mounts(service):
            if source.startswith("."):
                assert (compose.ROOT / source).exists(), f"{name} mounts {source}"
                assert mode == "ro", f"{name} could write to {source}"
            else:
                used.add(source)
            assert place.startswith("/")
    assert used == set(FILE["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_commands_are_the_programs(name: str) -> None:
    words = compose.command_words(SERVICES[name])
    assert words
    assert wrong_in(words) is None


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings_and_their_files_are_mounted(name: str) -> None:
    service = SERVICES[name]
    assert all(variable.startswith(ENV_PREFIX) for variable in compose.environment(service))
    settings = settings_of(name)
    places = [place for _, place, _ in compose.mounts(service)]
    for path in (settings.scoring.bundle, settings.scoring.rates, settings.scoring.policy):
        assert path is None or any(str(path).startswith(place) for place in places), f"{path} is not mounted"
    assert settings.kafka.bootstrap_servers in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_a_variable_that_is_no_setting_is_found() -> None:
    with pytest.raises(ConfigError, match="BROKERS"):
        load_settings(None, {**compose.environment(SERVICES["worker-0"]), "RISKSTREAM_KAFKA__BROKERS": "x:1"}, {})


def test_workers_have_ids_of_their_own_and_the_models_bundle() -> None:
    workers = {name: settings_of(name) for name in ("worker-0", "worker-1")}
    assert {settings.kafka.worker_id for settings in workers.values()} == set(workers)
    written = SERVICES["model"]["command"][0].split("--out ")[1].strip()
    for settings in workers.values():
        assert str(settings.scoring.bundle) == written
        assert settings.http.host == "0.0.0.0"
        assert settings.http.port == 9100
    partitions = SERVICES["topics"]["command"][-1]
    assert f"--partitions {partitions} " in SERVICES["model"]["command"][0]


def test_the_models_history_is_long_enough_to_learn_from() -> None:
    """In simulated time, of the very population: training, a gap of a label's delay, validation, the delay again."""
    words = compose.command_words(SERVICES["model"])
    asked = dict(zip(words[1::2], words[2::2], strict=True))
    assert history_days(int(asked["--simulated"]), int(asked["--accounts"])) > 4 * LABEL_MATURITY_DAYS
    assert history_days(60_000, 2_000) < 2 * LABEL_MATURITY_DAYS, "a population so large has too short a history"


def history_days(events: int, accounts: int) -> float:
    return events / Simulation(accounts=accounts).events_per_day


def test_the_model_is_trained_only_once(tmp_path: Path) -> None:
    """The shell line, run by a shell, with a stand-in for the program."""
    program = tmp_path / "riskstream"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    line = SERVICES["model"]["command"][0].replace("/bundles", str(tmp_path / "bundles"))

    def run() -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", line], capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)}
        )
        return done.stdout

    assert run().startswith("train ")
    (tmp_path / "bundles" / "payments").mkdir(parents=True)
    (tmp_path / "bundles" / "payments" / "manifest.json").write_text("{}")
    assert run() == ""


@pytest.mark.parametrize("name", ["worker-0", "worker-1", "quality"])
@pytest.mark.parametrize("stalled", [False, True])
def test_the_workers_probe_asks_whether_the_loop_turns(name: str, stalled: bool) -> None:
    server = HealthServer(HttpSettings(), CollectorRegistry(), lambda: Status(10**9 if stalled else 0, assigned=0))
    port = server.start()
    kind, program, *words = SERVICES[name]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python3")
    asked = f":{settings_of(name).http.port}/"
    assert asked in words[-1]
    command = [sys.executable, *(word.replace(asked, f":{port}/") for word in words)]
    try:
        assert (subprocess.run(command, check=False, capture_output=True).returncode != 0) == stalled
    finally:
        server.stop()


@pytest.mark.redis
def test_workers_take_the_redis_that_is_declared(redis_server: RedisServer, unique: str) -> None:
    """The declared flags, given to a real server, pass the check that a worker makes at its start."""
    program, *flags = [str(word) for word in SERVICES["redis"]["command"]]
    assert program == "redis-server"
    with redis.Redis.from_url(redis_server.url) as client:
        before = client.config_get("*")
        given = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
        for name, value in given.items():
            client.config_set(name, value)
    settings = load_settings(None, {}, {"redis.url": redis_server.url, "redis.require_persistence": True}).settings
    store = RedisStore(settings.redis, unique, "spec")
    try:
        assert [finding for finding in store.check() if finding.level == "error"] == []
    finally:
        store.close()
        with redis.Redis.from_url(redis_server.url) as client:
            for name in given:
                client.config_set(name, before[name])


def test_prometheus_and_grafana_read_the_projects_files() -> None:
    """What Prometheus scrapes and loads, and what Grafana provisions, is there under these names."""
    config = yaml.safe_load((compose.ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    targets = {
        target
        for job in config["scrape_configs"]
        for group in job.get("static_configs", [])
        for target in group["targets"]
    }
    served = {f"{name}:{settings_of(name).http.port}" for name in ("worker-0", "worker-1", "quality")}
    assert targets == served
    mounted = {place: source for source, place, _ in compose.mounts(SERVICES["prometheus"])}
    for pattern in config["rule_files"]:
        folder = mounted[str((Path("/etc/prometheus") / pattern).parent)]
        assert list((compose.ROOT / folder).glob(Path(pattern).name)), pattern
    assert SERVICES["prometheus"]["command"][0] == "--config.file=/etc/prometheus/prometheus.yml"
    folders = {place: source for source, place, _ in compose.mounts(SERVICES["grafana"])}
    for file in (compose.ROOT / folders["/etc/grafana/provisioning"]).rglob("*.y*ml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for provider in content.get("providers", []):
            path = provider["options"]["path"]
            assert list((compose.ROOT / folders[path]).rglob("*.json")), f"no dashboard for {path}"
        for source in content.get("datasources", []):
            assert source["url"] == "http://prometheus:9090"
