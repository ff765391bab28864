"""The commands that `riskstream rights` lists are all that the store needs on Redis, and none is too many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from stream.config import RedisSettings, Settings
from stream.errors import CredentialsError, NotAuthorisedError, RiskstreamError
from stream.rights import PASSWORD, REDIS_COMMANDS, Role, redis_rule
from stream.stack import RedisServer
from stream.state.redis import RedisStore
from stream.state.store import Checkpoint
from tests.conftest import require
from tests.contract.test_redis_store import PrivateRedis, finding, row

pytestmark = pytest.mark.redis

SETTINGS = Settings()
INSIDE_SCRIPTS = frozenset({"get", "getrange", "set", "hget", "hset", "hgetall", "pexpire"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    require(RedisServer)
    folder: Path = tmp_path_factory.mktemp("rights")
    made = PrivateRedis(folder, [])
    yield made
    made.stop()


def store_of(server: PrivateRedis, user: str, rule: str) -> RedisStore:
    server.client().execute_command(*rule.split())
    url = SecretStr(f"redis://{user}:{PASSWORD}@127.0.0.1:{server.port}/0")
    return RedisStore(RedisSettings(url=url, timeout_ms=2_000), SETTINGS.state_namespace, "0" * 16)


def do_everything(server: PrivateRedis, store: RedisStore) -> None:
    """All that a worker, a rebuild and the check at the start ask of the store."""
    server.client().flushall()
    server.client().script_flush()
    key = store.row_key(0, "account", "a")
    assert store.write_rows({key: row(1)}) == 1
    assert store.write_rows({key: row(2)}) == 1
    store.publish_copies("merchant", 0, {"m": row(1)})
    store.publish_copies("merchant", 0, {"m": row(2)})
    assert store.read_copies("merchant", ["m"]) == [{0: row(2)}]
    store.write_checkpoint(0, None, Checkpoint(1, 0))
    assert store.load_checkpoint(0) == Checkpoint(1, 0)
    assert store.load_rows([key], {0: Checkpoint(1, 0)}) == [row(2)]
    assert store.clear(0) == 2
    refused = [each for each in store.check() if each.level == "error" or each.subject == "redis info"]
    if refused:
        raise NotAuthorisedError(refused[0].message)


def rule_of(user: str) -> str:
    rule = redis_rule(SETTINGS, Role.WORKER, user)
    assert rule is not None
    return rule


def test_the_listed_commands_are_enough(server: PrivateRedis) -> None:
    store = store_of(server, "enough", rule_of("enough"))
    do_everything(server, store)
    assert finding(store.check(), "redis rights").level == "ok"
    assert finding(store.check(), "redis eviction").level == "ok"


@pytest.mark.parametrize("command", [name for name, _ in REDIS_COMMANDS])
def test_none_of_them_is_too_many(server: PrivateRedis, command: str) -> None:
    user = f"without-{command}"
    store = store_of(server, user, f"{rule_of(user)} ".replace(f" +{command} ", " "))
    with pytest.raises(NotAuthorisedError) as refused:
        do_everything(server, store)
    told = str(refused.value).lower()
    # Redis itself does not always say which command of a script it refused.
    assert command in told or command in INSIDE_SCRIPTS
    assert PASSWORD not in str(refused.value)


def test_keys_of_others_stay_closed(server: PrivateRedis) -> None:
    store = store_of(server, "confined", rule_of("confined"))
    own = RedisStore(store._settings, "other", "0" * 16)
    for call in (
        lambda: own.load_checkpoint(0),
        lambda: own.write_rows({own.row_key(0, "account", "a"): row(1)}),
        lambda: own.read_copies("merchant", ["m"]),
    ):
        with pytest.raises(NotAuthorisedError, match=r"~\{other:\*"):
            call()
    for command in (("FLUSHALL",), ("CONFIG", "SET", "dir", "/"), ("EVAL", "return redis.call('KEYS', '*')", 0)):
        with pytest.raises(RiskstreamError):
            store._run([command])


def test_a_wrong_password_is_no_missing_right(server: PrivateRedis) -> None:
    server.client().execute_command(*rule_of("known").split())
    for credentials in ("known:wrong", f"unknown:{PASSWORD}"):
        url = SecretStr(f"redis://{credentials}@127.0.0.1:{server.port}/0")
        store = RedisStore(RedisSettings(url=url), SETTINGS.state_namespace, "0" * 16)
        with pytest.raises(CredentialsError, match=r"redis\.url"):
            store.load_checkpoint(0)
        assert [(each.subject, each.level) for each in store.check()] == [("redis credentials", "error")]
