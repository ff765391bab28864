"""What `model` does."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from stream.app import load_domain
from stream.cli.connection import admin_of, connect
from stream.cli.context import end_with, note, print_json, print_table
from stream.cli.spans import span_ms
from stream.clock import SystemClock
from stream.config import Settings
from stream.errors import ConfigError, UnavailableError
from stream.events.moments import NO_MOMENT, moment_ms, moment_text
from stream.kafka.port import KafkaClient
from stream.rollout import library, topic
from stream.rollout.records import Deployment, Place, place_of
from stream.scoring.bundle import Manifest, verify
from stream.scoring.lineup import CHAMPION, ROLES

_ASK_TIMEOUT_S = 5.0
_MODEL_METRIC = "riskstream_model_info"


def moment_of(at: str | None, wait: str) -> Callable[[], int]:
    """The moment that the options name, milliseconds since the epoch: asked when it is announced, as `wait` runs from
    then. ConfigError at once.
    """
    if at is not None:
        found = moment_ms(at)
        if found == NO_MOMENT:
            raise ConfigError(f"--at {at}: write a time with a zone, such as 2026-03-01T06:00:00Z")
        return lambda: found
    wait_ms = span_ms(wait) or 0
    return lambda: _now() + wait_ms


def deploy_topic(settings: Settings, bundle: Path, role: str, moment: Callable[[], int], *, json: bool) -> None:
    """Verifies, copies into the library, announces. BundleRefused, ConfigError, TopicError."""
    _check_role(role)
    where = _library(settings)
    manifest = _verified(settings, bundle)
    client = connect(settings)
    with admin_of(client) as admin:
        topic.create(admin, settings)
    before = topic.standing(client, settings).get(role)
    place = place_of(manifest)
    library.add(where, bundle, place)
    former = before.bundle if before is not None else None
    if former is not None and former.digest == place.digest and before is not None:
        former = before.former  # the same again: a rollback must lead to something else
    _announce(
        client,
        settings,
        Deployment(role=role, bundle=place, from_ms=moment(), deployed_ms=_now(), former=former),
        json=json,
    )


def rollback_topic(settings: Settings, role: str, moment: Callable[[], int], *, json: bool) -> None:
    """Announces what had the role before. ConfigError when there is nothing to go back to."""
    _check_role(role)
    client = connect(settings)
    standing = topic.standing(client, settings).get(role)
    if standing is None or standing.former is None:
        raise ConfigError(f"{role}: nothing to go back to; `riskstream model status` shows what was deployed")
    back = Deployment(role=role, bundle=standing.former, from_ms=moment(), deployed_ms=_now(), former=standing.bundle)
    _announce(client, settings, back, json=json)


def remove_challenger(settings: Settings, role: str, *, json: bool) -> None:
    """Announces that nobody has the role. ConfigError for the champion."""
    _check_role(role)
    if role == CHAMPION:
        raise ConfigError("--role champion: the champion cannot be removed; deploy another one")
    client = connect(settings)
    standing = topic.standing(client, settings).get(role)
    if standing is None or standing.bundle is None:
        raise ConfigError(f"{role}: nobody has it")
    now = _now()
    gone = Deployment(role=role, bundle=None, from_ms=now, deployed_ms=now, former=standing.bundle)
    _announce(client, settings, gone, json=json)


def deploy_link(settings: Settings, bundle: Path, link: Path, *, json: bool) -> None:
    """Verifies a bundle, then lets the link lead to it."""
    manifest = _verified(settings, bundle)
    former = library.point(link, bundle)
    _tell_link(link, manifest, former, json=json)


def rollback_link(settings: Settings, link: Path, *, json: bool) -> None:
    """Lets the link lead to where it led before. ConfigError when that is nowhere."""
    former = library.former_of(link)
    if former is None:
        raise ConfigError(f"{link}: nothing to go back to; it was never moved by `riskstream model deploy --link`")
    manifest = _verified(settings, former)
    _tell_link(link, manifest, library.point(link, former), json=json)


def show_status(settings: Settings, workers: Sequence[str], *, json: bool) -> None:
    """Prints the deployments and what the workers say. Ends with 1 when a worker has another champion."""
    standing = topic.standing(connect(settings), settings)
    running = {url: _models_of(url) for url in workers}
    now = _now()
    champion = standing.get(CHAMPION)
    due = champion is not None and champion.from_ms <= now
    agree = all(
        not due or champion is None or champion.bundle is None or models.get(CHAMPION) == champion.bundle.model
        for models in running.values()
    )
    if json:
        roles = {role: one.model_dump() for role, one in standing.items()}
        print_json({"topic": settings.topics.models, "roles": roles, "workers": running, "agree": agree})
        end_with(agree)
        return
    if not standing:
        note(f"nothing was deployed on the topic {settings.topics.models}; workers score with scoring.bundle")
    rows = [
        (
            role,
            _name(one.bundle),
            ("since " if one.from_ms <= now else "from ") + moment_text(one.from_ms),
            _name(one.former),
        )
        for role, one in sorted(standing.items())
    ]
    if rows:
        print_table(rows, header=("role", "model", "counts", "before it"))
    for url, models in running.items():
        print(f"{url}: " + ", ".join(f"{role} {name}" for role, name in sorted(models.items())))
    if not agree:
        note("a worker runs another champion than the one that counts: look for 'bundle refused' in its log")
    end_with(agree)


def _announce(client: KafkaClient, settings: Settings, deployment: Deployment, *, json: bool) -> None:
    topic.publish(client, settings, deployment)
    if json:
        print_json(deployment.model_dump())
        return
    when = moment_text(deployment.from_ms)
    if deployment.bundle is None:
        print(f"{deployment.role}: {_name(deployment.former)} is taken out")
    elif deployment.role == CHAMPION:
        print(f"champion: {deployment.bundle.model} scores every event from {when} on (Kafka timestamp)")
        if deployment.from_ms <= deployment.deployed_ms:
            note("that moment has passed: what was scored since then stays as it is")
    else:
        print(f"{deployment.role}: {deployment.bundle.model} scores beside the champion once a worker has verified it")


def _tell_link(link: Path, manifest: Manifest, former: Path | None, *, json: bool) -> None:
    if json:
        print_json({"link": str(link), "model": manifest.label, "former": None if former is None else str(former)})
    else:
        print(f"{link} leads to {manifest.label}; its workers take it within scoring.watch_interval_ms, once verified")


def _verified(settings: Settings, bundle: Path) -> Manifest:
    key = settings.scoring.signature_key
    secret = None if key is None else key.get_secret_value().encode()
    return verify(bundle, domain=load_domain(settings), signature_key=secret).manifest


def _models_of(url: str) -> dict[str, str]:
    """Role -> name@version, from a worker's metrics. ConfigError, UnavailableError."""
    from prometheus_client.parser import text_string_to_metric_families

    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"--worker {url}: write http://host:port")
    try:
        with contextlib.closing(urllib.request.urlopen(url.rstrip("/") + "/metrics", timeout=_ASK_TIMEOUT_S)) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise UnavailableError(f"--worker {url}: does not answer ({error})") from None
    return {
        sample.labels["role"]: f"{sample.labels['name']}@{sample.labels['version']}"
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == _MODEL_METRIC and sample.labels.get("name")
    }


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ConfigError(f"--role {role}: write one of {', '.join(ROLES)}")


def _library(settings: Settings) -> Path:
    where = settings.scoring.library
    if where is None:
        raise ConfigError(
            "scoring.library is not set: name a folder that all workers read "
            "(RISKSTREAM_SCORING__LIBRARY), or give --link for a single worker"
        )
    if not where.is_dir():
        raise ConfigError(f"scoring.library {where}: is no folder")
    return where


def _name(place: Place | None) -> str:
    return place.model if place is not None else "-"


def _now() -> int:
    return SystemClock().now_ms()
