"""What only a real server can do to the Redis store: forget, fill up, refuse, hang, restart."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from stream.app import check_store
from stream.config import RedisSettings
from stream.errors import CertificateError, ConfigError, FatalError, NotAuthorisedError, UnavailableError
from stream.state.redis import RedisStore
from stream.state.store import Checkpoint, Finding, Head
from tests.conftest import require
from tests.contract.owner import Owner

pytestmark = pytest.mark.redis

PASSWORD = "s3cret-w0rd"
NAMESPACE = "fraud"


def row(offset: int, size: int = 0) -> bytes:
    return struct.pack("<qq", offset, 0) + bytes(size)


def free_port() -> int:
    """One to which a cluster's bus port, 10,000 higher, can be added."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) < 55_000:
                return port


class PrivateRedis:
    """A redis-server of one test, so that it may be flushed, filled, stopped and misconfigured."""

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        self.port = free_port()
        self.arguments = ["--dir", str(directory), "--bind", "127.0.0.1", "--save", "", *arguments]
        self.start()

    def start(self) -> None:
        port = [] if "--tls-port" in self.arguments else ["--port", str(self.port)]
        command = ["redis-server", *port, *[word.replace("PORT", str(self.port)) for word in self.arguments]]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)


@pytest.fixture
def private(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[PrivateRedis]:
    """Arguments by `pytest.mark.parametrize("private", [[...]], indirect=True)`."""
    if shutil.which("redis-server") is None:
        from stream.stack import RedisServer

        require(RedisServer)
    server = PrivateRedis(tmp_path, getattr(request, "param", []))
    yield server
    server.stop()


def store_at(url: str, **changes: object) -> Owner:
    return Owner(RedisStore(RedisSettings(url=SecretStr(url), timeout_ms=500, **changes), NAMESPACE, "0" * 16))  # type: ignore[arg-type]


def store_of(server: PrivateRedis, credentials: str = "", **changes: object) -> Owner:
    return store_at(f"redis://{credentials}127.0.0.1:{server.port}/0", **changes)


def every_call(store: Owner) -> Iterator[Callable[[], object]]:
    """With the head of partition 0 as it was, where it cannot be claimed."""
    key = store.row_key(0, "account", "a")
    yield lambda: store.claim(0)
    store.heads.setdefault(0, Head(1, (store.name,), None))
    yield lambda: store.load_rows([key], [0])
    yield lambda: store.write_rows({key: row(1)})
    yield lambda: store.load_checkpoint(0)
    yield lambda: store.write_checkpoint(0, Checkpoint(1, 0))
    yield lambda: store.publish_copies("merchant", 0, {"m": row(1)})
    yield lambda: store.read_copies("merchant", ["m"])
    yield lambda: store.clear(0)


def finding(findings: list[Finding], subject: str) -> Finding:
    return next(each for each in findings if each.subject == subject)


def test_scripts_that_the_server_forgot_are_sent_again(private: PrivateRedis) -> None:
    store, keys = store_of(private), []
    for partition in range(3):
        keys += [store.row_key(partition, "account", str(number)) for number in range(700)]
    assert store.write_rows({key: row(1) for key in keys}) == 2100
    private.client().script_flush()
    assert store.write_rows({key: row(2) for key in keys}) == 2100
    private.client().script_flush()
    store.publish_copies("merchant", 0, {"m": row(1)})
    private.client().script_flush()
    assert store.read_copies("merchant", ["m"]) == [{0: row(1)}]
    private.client().script_flush()
    store.write_checkpoint(0, Checkpoint(1, 0))


def test_a_full_server_is_unavailable_and_keeps_what_it_has(private: PrivateRedis) -> None:
    store = store_of(private)
    keys = [store.row_key(0, "account", str(number)) for number in range(2_000)]
    store.write_rows({keys[0]: row(1)})
    private.client().config_set("maxmemory", "3mb")
    with pytest.raises(UnavailableError, match="maxmemory"):
        store.write_rows({key: row(1, 2_000) for key in keys})
    private.client().config_set("maxmemory", "1mb")
    with pytest.raises(UnavailableError, match="maxmemory"):
        store.write_checkpoint(0, Checkpoint(1, 0))
    assert store.load_rows([keys[0]], [0]) == [row(1)]
    assert finding(store.store.check(), "redis memory").level == "error"
    check_store(store.store)  # a worker that starts now waits; it does not end with a right that seems to be missing
    private.client().config_set("maxmemory", "0")
    store.write_checkpoint(0, Checkpoint(1, 0))


@pytest.mark.parametrize("private", [["--requirepass", PASSWORD]], indirect=True)
def test_a_wrong_password_names_the_setting_and_hides_the_password(private: PrivateRedis) -> None:
    for credentials in ("", ":wrong-" + PASSWORD + "@", f"nobody:{PASSWORD}@"):
        store = store_of(private, credentials)
        for call in every_call(store):
            with pytest.raises(NotAuthorisedError, match=r"redis\.url") as caught:
                call()
            assert PASSWORD not in str(caught.value) + repr(caught.value)
        assert [each.level for each in store.store.check()] == ["error"]
    assert store_of(private, f":{PASSWORD}@").load_checkpoint(0) is None


def test_a_user_restricted_to_the_namespace_can_do_everything(private: PrivateRedis) -> None:
    rights = ["+@read", "+@write", "+@scripting", "+@connection", "resetkeys", f"~{{{NAMESPACE}:*"]
    private.client().execute_command("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "-@all", *rights)
    store = store_of(private, f"worker:{PASSWORD}@")
    for call in every_call(store):
        call()
    assert finding(store.store.check(), "redis rights").level == "ok"
    assert finding(store.store.check(), "redis info").level == "warning"
    assert isinstance(store.store, RedisStore)
    with pytest.raises(NotAuthorisedError):
        store.store.memory()
    other = Owner(RedisStore(store.store._settings, NAMESPACE + "-other", "0" * 16))
    with pytest.raises(NotAuthorisedError, match=r"~\{fraud-other:\*"):
        other.load_rows([other.row_key(0, "account", "a")])
    with pytest.raises(NotAuthorisedError):
        other.write_rows({other.row_key(0, "account", "a"): row(1)})


@pytest.mark.parametrize(
    ("missing", "refused"),
    [
        ("-set", lambda store, key: store.write_rows({key: row(1)})),
        ("-evalsha", lambda store, key: store.write_rows({key: row(1)})),
        ("-mget", lambda store, key: store.load_rows([key])),
    ],
)
def test_a_missing_right_is_named(
    private: PrivateRedis, missing: str, refused: Callable[[Owner, bytes], object]
) -> None:
    private.client().execute_command("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "+@all", "~*", missing)
    store = store_of(private, f"worker:{PASSWORD}@")
    with pytest.raises(NotAuthorisedError, match="riskstream rights"):
        refused(store, store.row_key(0, "account", "a"))
    if missing != "-mget":
        assert finding(store.store.check(), "redis rights").level == "error"


def test_a_server_that_is_gone_is_unavailable_and_found_again(private: PrivateRedis) -> None:
    store = store_of(private, f"user:{PASSWORD}@")
    private.stop()
    for call in every_call(store):
        with pytest.raises(UnavailableError) as caught:
            call()
        assert PASSWORD not in str(caught.value)
    assert [each.level for each in store.store.check()] == ["error"]
    private.start()
    private.client().execute_command("ACL", "SETUSER", "user", "on", f">{PASSWORD}", "+@all", "~*")
    store.claim(0)
    assert store.write_rows({store.row_key(0, "account", "a"): row(1)}) == 1


def test_a_broken_connection_is_replaced_within_the_call(private: PrivateRedis) -> None:
    store = store_of(private)
    key = store.row_key(0, "account", "a")
    for offset in range(1, 4):
        private.client().client_kill_filter(_type="normal", skipme=True)
        assert store.write_rows({key: row(offset)}) == 1
        assert store.load_rows([key]) == [row(offset)]


def test_a_server_that_hangs_is_unavailable_after_three_tries(private: PrivateRedis) -> None:
    store = store_at(f"redis://127.0.0.1:{private.port}/0")
    store.write_checkpoint(0, Checkpoint(1, 0))
    private.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            store.load_checkpoint(0)
        assert time.monotonic() - started < 4
    finally:
        private.process.send_signal(signal.SIGCONT)
    # No answer of the abandoned question may be taken for the next one's.
    assert store.load_rows([store.row_key(0, "account", "a")], [0]) == [None]
    assert store.load_checkpoint(0) == Checkpoint(1, 0)


def test_a_server_that_still_loads_its_data_is_unavailable(private: PrivateRedis) -> None:
    client = private.client()
    client.mset({str(number): "x" * 10_000 for number in range(1_000)})
    client.save()
    private.stop()
    private.arguments += ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "4096"]
    private.start()
    store = store_of(private)
    with pytest.raises(UnavailableError, match="loading"):
        store.load_checkpoint(0)
    assert "loading" in store.store.check()[0].message


def test_a_read_only_replica_is_unavailable(private: PrivateRedis) -> None:
    private.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(UnavailableError, match="replica"):
        store_of(private).write_rows({store_of(private).row_key(0, "account", "a"): row(1)})


def test_keys_of_another_kind_are_fatal_not_silent(private: PrivateRedis) -> None:
    store = store_of(private)
    key = store.row_key(0, "account", "a")
    private.client().rpush(key, "x")
    with pytest.raises(FatalError, match="WRONGTYPE"):
        store.write_rows({key: row(1)})
    store.write_checkpoint(0, Checkpoint(1, 0))
    (head,) = private.client().scan_iter(match="*head")
    private.client().set(head, "what is this")
    with pytest.raises(FatalError, match="head"):
        store.load_checkpoint(0)


def test_rows_and_copies_expire_and_the_checkpoint_does_not(private: PrivateRedis) -> None:
    store = store_of(private, row_ttl_days=40)
    store.write_rows({store.row_key(0, "account", "a"): row(1)})
    store.publish_copies("merchant", 0, {"m": row(1)})
    store.write_checkpoint(0, Checkpoint(1, 0))
    times = {key.rpartition(b"}:")[2].split(b":")[0]: private.client().ttl(key) for key in private.client().scan_iter()}
    assert times[b"head"] == times[b"epochs"] == -1
    for kind in (b"row", b"copy"):
        assert 39 * 86_400 < times[kind] <= 40 * 86_400


@pytest.mark.parametrize("private", [["--cluster-enabled", "yes"]], indirect=True)
def test_no_command_crosses_the_slots_of_a_cluster(private: PrivateRedis) -> None:
    client = private.client()
    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
        time.sleep(0.05)
    store = store_of(private)
    keys = [store.row_key(number % 5, "account", str(number)) for number in range(200)]
    assert store.write_rows({key: row(1) for key in keys}) == 200
    assert store.load_rows(keys, range(5)) == [row(1)] * 200
    for call in every_call(store):
        call()
    copies = {str(number): row(1) for number in range(200)}
    store.publish_copies("merchant", 4, copies)
    assert store.read_copies("merchant", list(copies)) == [{4: row(1)}] * 200
    assert finding(store.store.check(), "redis cluster").level == "ok"
    client.execute_command("CLUSTER", "DELSLOTSRANGE", 0, 16383)
    with pytest.raises(UnavailableError):
        store.load_checkpoint(0)


def test_findings_of_a_server_set_up_well_and_badly(private: PrivateRedis) -> None:
    client = private.client()
    client.config_set("maxmemory", "100mb")
    client.config_set("appendonly", "yes")
    store = store_of(private, key_secret=SecretStr("own secret"))
    assert store.store.memory().limit_bytes == 100 * 2**20
    assert {each.level for each in store.store.check()} == {"ok"}
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    strict = store_of(private, require_persistence=True).store.check()
    assert finding(strict, "redis eviction").level == finding(strict, "redis persistence").level == "error"
    lax = store_of(private, require_noeviction=False).store.check()
    assert finding(lax, "redis eviction").level == finding(lax, "redis persistence").level == "warning"
    assert finding(lax, "redis key secret").level == "warning"
    client.config_set("save", "60 1000")
    assert finding(store.store.check(), "redis persistence").level == "ok"
    client.config_set("maxmemory", "0")
    assert "noeviction" in finding(lax, "redis eviction").remedy
    assert finding(store.store.check(), "redis memory").level == "warning"


@pytest.mark.parametrize("url", ["redis://:pa:ss@h:x/", "http://h", f"redis://h?{PASSWORD}=1&no_such_option=2"])
def test_a_url_that_cannot_be_used_is_never_shown(url: str) -> None:
    settings = RedisSettings.model_construct(**(dict(RedisSettings()) | {"url": SecretStr(url)}))
    with pytest.raises(ConfigError, match=r"redis\.url") as caught:
        RedisStore(settings, NAMESPACE, "0" * 16)
    assert caught.value.__cause__ is None
    assert PASSWORD not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    made, key = directory / "cert.pem", directory / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-out", made, "-keyout", key], check=True, capture_output=True)
    return made, key


@pytest.fixture
def tls(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[PrivateRedis]:
    made, key = map(str, certificate)
    options = ["--tls-cert-file", made, "--tls-key-file", key, "--tls-ca-cert-file", made, "--tls-auth-clients", "yes"]
    server = PrivateRedis(tmp_path, ["--port", "0", "--tls-port", "PORT", *options])
    yield server
    server.stop()


def test_tls_with_a_client_certificate(tls: PrivateRedis, certificate: tuple[Path, Path]) -> None:
    made, key = certificate
    url = f"rediss://127.0.0.1:{tls.port}/0"
    store = store_at(url, ssl_ca_file=made, ssl_cert_file=made, ssl_key_file=key)
    assert store.write_rows({store.row_key(0, "account", "a"): row(1)}) == 1
    with pytest.raises(CertificateError, match=r"redis\.ssl_ca_file"):
        store_at(url, ssl_cert_file=made, ssl_key_file=key).load_checkpoint(0)
    # The server refuses after the handshake: its words may come before or after our question fails.
    with pytest.raises((CertificateError, UnavailableError), match=r"redis\.ssl_cert_file"):
        store_at(url, ssl_ca_file=made).load_checkpoint(0)
    with pytest.raises(CertificateError, match="PEM"):
        store_at(url, ssl_ca_file=key).load_checkpoint(0)


def test_an_interrupt_between_question_and_answer_leaves_no_answer_behind(private: PrivateRedis) -> None:
    store = store_of(private)
    store.write_checkpoint(0, Checkpoint(1, 0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    private.process.send_signal(signal.SIGSTOP)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            store.load_checkpoint(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.kill(private.process.pid, signal.SIGCONT)
    assert store.load_rows([store.row_key(0, "account", "a")], [0]) == [None]


def test_a_server_with_too_many_clients_is_unavailable(private: PrivateRedis) -> None:
    private.client().config_set("maxclients", "1")
    held = private.client()
    held.ping()
    with pytest.raises(UnavailableError, match="max number of clients"):
        store_of(private).load_checkpoint(0)
