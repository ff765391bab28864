"""The commands that `riskstream rights` lists are all that the store needs on Redis, and none is too many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from stream.config import RedisSettings, Settings
from stream.errors import CredentialsError, NotAuthorisedError
from stream.rights import PASSWORD, REDIS_COMMANDS, Role, redis_rule
from stream.stack import RedisServer
from stream.state.redis import RedisStore
from stream.state.store import Checkpoint
from tests.conftest import require
from tests.contract.owner import Owner
from tests.contract.test_redis_store import PrivateRedis, finding, row

pytestmark = pytest.mark.redis

SETTINGS = Settings()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    require(RedisServer)
    folder: Path = tmp_path_factory.mktemp("rights")
    made = PrivateRedis(folder, [])
    yield made
    made.stop()


def owner_at(url: str, namespace: str = SETTINGS.state_namespace) -> Owner:
    return Owner(RedisStore(RedisSettings(url=SecretStr(url), timeout_ms=2_000), namespace, "0" * 16))


def store_of(server: PrivateRedis, user: str, rule: str) -> Owner:
    server.client().execute_command(*rule.split())
    return owner_at(f"redis://{user}:{PASSWORD}@127.0.0.1:{server.port}/0")


def do_everything(server: PrivateRedis, store: Owner) -> None:
    """All that a worker, a rebuild and the check at the start ask of the store."""
    server.client().flushall()
    server.client().script_flush()
    key = store.row_key(0, "account", "a")
    store.claim(0)
    assert store.write_rows({key: row(1)}) == 1
    assert store.write_rows({key: row(2)}) == 1
    store.publish_copies("merchant", 0, {"m": row(1)})
    store.publish_copies("merchant", 0, {"m": row(2)})
    assert store.read_copies("merchant", ["m"]) == [{0: row(2)}]
    store.write_checkpoint(0, Checkpoint(1, 0))
    assert store.load_checkpoint(0) == Checkpoint(1, 0)
    assert store.load_rows([key], [0]) == [row(2)]
    assert store.clear(0) == 2
    refused = [each for each in store.store.check() if each.level == "error" or each.subject == "redis info"]
    if refused:
        raise NotAuthorisedError(refused[0].message)


def rule_of(user: str) -> str:
    rule = redis_rule(SETTINGS, Role.WORKER, user)
    assert rule is not None
    return rule


def test_the_listed_commands_are_enough(server: PrivateRedis) -> None:
    store = store_of(server, "enough", rule_of("enough"))
    do_everything(server, store)
    assert finding(store.store.check(), "redis rights").level == "ok"
    assert finding(store.store.check(), "redis eviction").level == "ok"


@pytest.mark.parametrize("command", [name for name, _ in REDIS_COMMANDS])
def test_none_of_them_is_too_many(server: PrivateRedis, command: str) -> None:
    user = f"without-{command}"
    store = store_of(server, user, f"{rule_of(user)} ".replace(f" +{command} ", " "))
    with pytest.raises(NotAuthorisedError) as refused:
        do_everything(server, store)
    told = str(refused.value).lower()
    assert command in told
    assert PASSWORD not in str(refused.value)


def test_keys_of_others_stay_closed(server: PrivateRedis) -> None:
    store_of(server, "confined", rule_of("confined"))
    confined = owner_at(f"redis://confined:{PASSWORD}@127.0.0.1:{server.port}/0", "other")
    for call in (
        lambda: confined.load_checkpoint(0),
        lambda: confined.claim(0),
        lambda: confined.read_copies("merchant", ["m"]),
    ):
        with pytest.raises(NotAuthorisedError, match=r"~\{other:\*"):
            call()
    with redis.Redis(port=server.port, username="confined", password=PASSWORD) as client:
        for command in (("FLUSHALL",), ("CONFIG", "SET", "dir", "/"), ("EVAL", "return redis.call('KEYS', '*')", 0)):
            with pytest.raises(redis.ResponseError):
                client.execute_command(*command)


def test_a_wrong_password_is_no_missing_right(server: PrivateRedis) -> None:
    server.client().execute_command(*rule_of("known").split())
    for credentials in ("known:wrong", f"unknown:{PASSWORD}"):
        store = owner_at(f"redis://{credentials}@127.0.0.1:{server.port}/0")
        with pytest.raises(CredentialsError, match=r"redis\.url"):
            store.load_checkpoint(0)
        assert [(each.subject, each.level) for each in store.store.check()] == [("redis credentials", "error")]
