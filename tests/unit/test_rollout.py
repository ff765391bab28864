"""Bundles that come while a worker runs: watched folders, the models topic, the command, and all that is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from stream.config import load_settings
from stream.errors import BundleRefused, ConfigError, TopicError, UnavailableError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import TopicPartition
from stream.metrics import Metrics
from stream.rollout import library, topic
from stream.rollout.records import Deployment, parse, place_of
from stream.rollout.topic import ModelsTopic
from stream.rollout.watch import FolderSource, ModelWatch, TopicSource, Wanted
from stream.scoring import bundle
from stream.scoring.lineup import AT_ONCE, CHAMPION, Change
from stream.scoring.loading import check_latency, load_scorer
from stream.scoring.scorer import Scorer
from tests.crash.small import FormulaScorer
from tests.unit.model_fixtures import lay_out, quick_bundle, reseal, tiny_domain

SETTINGS = load_settings(None, {}, {}).settings


class Lists:
    """A source that says what it is told to."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []

    def look(self) -> list[Wanted]:
        found, self.wanted = self.wanted, []
        return found


def watch_of(*sources: object, load: object = None) -> tuple[ModelWatch, Metrics]:
    domain = tiny_domain()
    metrics = Metrics(CollectorRegistry())
    loads = load or (lambda folder: load_scorer(folder, domain, SETTINGS.scoring))
    return ModelWatch(list(sources), loads, metrics, interval_ms=0), metrics  # type: ignore[arg-type]


def refusals(metrics: Metrics) -> float:
    return sum(s.value for f in metrics.model_refusals.collect() for s in f.samples if s.name.endswith("_total"))


def lay_version(folder: Path, version: str) -> Path:
    _, files = quick_bundle()
    return lay_out(folder, reseal(files, version=version))


# --- folders


def test_a_link_that_moves_brings_another_model(tmp_path: Path) -> None:
    first, second = lay_version(tmp_path / "1", "1"), lay_version(tmp_path / "2", "2")
    link = tmp_path / "current"
    library.point(link, first)
    watch, metrics = watch_of(FolderSource(CHAMPION, link))
    watch._look()
    assert watch.take() == [], "what it was at the start is loaded by the start"
    library.point(link, second)
    watch._look()
    assert watch.take() == [], "one look is not enough: it may be half copied"
    watch._look()
    (change,) = watch.take()
    assert (change.role, change.from_ms) == (CHAMPION, AT_ONCE)
    assert change.scorer is not None
    assert change.scorer.manifest.version == "2"
    watch._look()
    assert watch.take() == []
    assert library.former_of(link) == first.resolve()
    assert refusals(metrics) == 0


@pytest.mark.parametrize("damage", ["byte", "missing", "golden", "spec", "extra"])
def test_a_bundle_that_does_not_verify_changes_nothing(tmp_path: Path, damage: str) -> None:
    folder = lay_version(tmp_path / "bundle", "1")
    watch, metrics = watch_of(FolderSource(CHAMPION, folder))
    _, files = quick_bundle()
    if damage == "byte":
        content = bytearray((folder / "model.ts").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "model.ts").write_bytes(content)
    elif damage == "missing":
        (folder / "golden.npz").unlink()
    elif damage == "golden":
        shutil.rmtree(folder)
        lay_out(folder, reseal({**files, "golden.npz": files["golden.npz"][:-30]}))
    elif damage == "spec":
        shutil.rmtree(folder)
        lay_out(folder, reseal(files, spec_id="0" * 16))
    else:
        (folder / "more.txt").write_text("?")
    for _ in range(3):
        watch._look()
    assert watch.take() == []
    assert refusals(metrics) == 1, "told once, not at every look"
    shutil.rmtree(folder)
    lay_version(folder, "3")
    for _ in range(2):
        watch._look()
    (change,) = watch.take()
    assert change.scorer is not None
    assert change.scorer.manifest.version == "3"


def test_whatever_a_bundle_provokes_is_a_refusal(tmp_path: Path) -> None:
    lists = Lists()

    def load(folder: Path) -> Scorer:
        raise MemoryError

    watch, metrics = watch_of(lists, load=load)
    lists.wanted = [Wanted(CHAMPION, tmp_path)]
    watch._look()
    assert watch.take() == []
    assert refusals(metrics) == 1


def test_a_folder_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    lists = Lists()
    watch, metrics = watch_of(lists)
    lists.wanted = [Wanted(CHAMPION, tmp_path / "late")]
    watch._look()
    assert (watch.take(), refusals(metrics)) == ([], 0)
    lay_version(tmp_path / "late", "5")
    watch._look()
    (change,) = watch.take()
    assert change.scorer is not None
    lists.wanted = [Wanted(CHAMPION, tmp_path / "never")]
    for _ in range(40):
        watch._look()
    assert (watch.take(), refusals(metrics)) == ([], 1)


def test_the_background_thread_does_it_too(tmp_path: Path) -> None:
    link = tmp_path / "current"
    library.point(link, lay_version(tmp_path / "1", "1"))
    domain, metrics = tiny_domain(), Metrics(CollectorRegistry())
    watch = ModelWatch(
        [FolderSource(CHAMPION, link)],
        lambda folder: load_scorer(folder, domain, SETTINGS.scoring),
        metrics,
        interval_ms=10,
    )
    watch.start()
    try:
        library.point(link, lay_version(tmp_path / "2", "2"))
        found: list[Change] = []
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            found.extend(watch.take())
            time.sleep(0.01)
        assert [change.scorer.manifest.version for change in found if change.scorer] == ["2"]
    finally:
        watch.stop()


# --- signature and latency


def test_with_a_key_only_what_is_signed_with_it_is_loaded(tmp_path: Path) -> None:
    domain, files = quick_bundle()
    settings = load_settings(None, {}, {"scoring.signature_key": "the right key"}).settings.scoring
    signed = lay_out(tmp_path / "signed", reseal(files, b"the right key"))
    assert load_scorer(signed, domain, settings).manifest.signature is not None
    for name, key in (("unsigned", None), ("forged", b"another key")):
        with pytest.raises(BundleRefused, match="signature"):
            load_scorer(lay_out(tmp_path / name, reseal(files, key)), domain, settings)


def test_a_bundle_is_signed_in_place(tmp_path: Path) -> None:
    domain, files = quick_bundle()
    folder = lay_out(tmp_path / "bundle", files)
    unsigned = bundle.verify(folder, golden=False).manifest
    signed = bundle.sign(folder, b"some secret")
    assert bundle.verify(folder, domain=domain, signature_key=b"some secret").manifest == signed
    assert signed.model_dump(exclude={"signature", "digest"}) == unsigned.model_dump(exclude={"signature", "digest"})
    with pytest.raises(BundleRefused, match="signature"):
        bundle.verify(folder, signature_key=b"another one")
    (folder / "model.ts").write_bytes(b"")
    with pytest.raises(BundleRefused, match=r"model\.ts"):
        bundle.sign(folder, b"some secret")


def test_a_model_that_is_too_slow_is_refused() -> None:
    class Slow(FormulaScorer):
        def score(self, *arguments: object) -> object:  # type: ignore[override]
            time.sleep(0.02)
            return super().score(*arguments)  # type: ignore[arg-type]

    from tests.crash.small import DOMAIN

    with pytest.raises(BundleRefused, match=r"latency: 256 events took .* scoring\.max_batch_ms allows 10"):
        check_latency(Slow(), DOMAIN, 10)
    check_latency(FormulaScorer(), DOMAIN, 10_000)


# --- the topic


@pytest.fixture
def client() -> MemoryKafka:
    broker = MemoryBroker()
    broker.create_topic(SETTINGS.topics.transactions, partitions=2)
    return MemoryKafka(broker, SETTINGS.kafka)


def test_the_topic_is_made_once_and_must_be_compacted(client: MemoryKafka) -> None:
    admin = client.admin()
    assert topic.create(admin, SETTINGS)
    assert not topic.create(admin, SETTINGS)
    broker = MemoryBroker()
    broker.create_topic(SETTINGS.topics.models, partitions=3)
    with pytest.raises(TopicError, match="one partition"):
        topic.create(MemoryKafka(broker, SETTINGS.kafka).admin(), SETTINGS)
    with pytest.raises(TopicError, match="topics create"):
        topic.create(MemoryKafka(MemoryBroker(), SETTINGS.kafka).admin(), SETTINGS)


def test_what_was_read_before_a_poll_failed_is_read_again(client: MemoryKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    topic.create(client.admin(), SETTINGS)
    reader = client.reader()
    monkeypatch.setattr(client, "reader", lambda: reader)
    announcements = ModelsTopic(client, SETTINGS.topics.models)
    assert announcements.read() == []
    gone = [Deployment(role="challenger-1", bundle=None, from_ms=0, deployed_ms=number) for number in range(3)]
    for one in gone:
        topic.publish(client, SETTINGS, one)
    poll, calls = reader.poll, itertools.count()

    def away_at_the_second(most: int, wait_ms: int) -> Any:
        if next(calls) == 1:
            raise UnavailableError("the broker is away")
        return poll(1, wait_ms)

    monkeypatch.setattr(reader, "poll", away_at_the_second)
    with pytest.raises(UnavailableError):
        announcements.read()
    assert announcements.read() == gone
    assert announcements.read() == []


def test_what_is_announced_is_taken_at_its_moment(client: MemoryKafka, tmp_path: Path) -> None:
    topic.create(client.admin(), SETTINGS)
    shelves = tmp_path / "library"
    shelves.mkdir()
    places = []
    for version in "123":
        folder = lay_version(tmp_path / version, version)
        places.append(place_of(bundle.verify(folder, golden=False).manifest))
        library.add(shelves, folder, places[-1])
        library.add(shelves, folder, places[-1])  # a second time changes nothing
    publish = topic.publish
    deployed = Deployment(role=CHAMPION, bundle=places[1], from_ms=700, deployed_ms=1, former=places[0])
    publish(client, SETTINGS, deployed)
    watch, metrics = watch_of()
    source = TopicSource(ModelsTopic(client, SETTINGS.topics.models), shelves, watch.refuse)
    watch._sources = [source]
    watch._look()
    assert [(c.scorer.manifest.version, c.from_ms) for c in watch.take() if c.scorer] == [("1", AT_ONCE), ("2", 700)]
    publish(client, SETTINGS, Deployment(role="challenger-2", bundle=places[2], from_ms=0, deployed_ms=2))
    publish(client, SETTINGS, Deployment(role="challenger-2", bundle=None, from_ms=0, deployed_ms=3))
    watch._look()
    kept = watch.take()
    assert [(c.role, c.scorer is None) for c in kept] == [("challenger-2", False), ("challenger-2", True)]
    # Another bundle under the announced name, and a record that is none.
    wrong = places[2].model_copy(update={"folder": places[0].folder})
    publish(client, SETTINGS, Deployment(role=CHAMPION, bundle=wrong, from_ms=0, deployed_ms=4))
    producer = client.plain_producer()
    producer.produce(SETTINGS.topics.models, b"{}", key=b"champion", partition=0)
    producer.flush()
    watch._look()
    assert watch.take() == []
    assert refusals(metrics) == 2
    assert topic.standing(client, SETTINGS)[CHAMPION].bundle == wrong


@pytest.mark.parametrize(
    "folder", ["../elsewhere", "/etc", "a/b", "..", ".hidden", "", "a\x00b", "x" * 300, "payments@1\n"]
)
def test_a_record_cannot_name_anything_outside_the_library(folder: str) -> None:
    place = {"folder": folder, "model": "m", "digest": "0" * 64}
    value = {"role": "champion", "from_ms": 1, "deployed_ms": 1, "bundle": place}
    assert isinstance(parse(json.dumps(value).encode()), str)
    place["folder"] = "payments@1-0123456789ab"
    assert isinstance(parse(json.dumps(value).encode()), Deployment)


def test_no_topic_yet_is_no_error(client: MemoryKafka, tmp_path: Path) -> None:
    assert topic.standing(client, SETTINGS) == {}
    watch, metrics = watch_of()
    watch._sources = [TopicSource(ModelsTopic(client, SETTINGS.topics.models), tmp_path, watch.refuse)]
    watch._look()
    assert watch.take() == []
    topic.create(client.admin(), SETTINGS)
    watch._look()
    assert refusals(metrics) == 0
    assert client.reader().end_offset(TopicPartition(SETTINGS.topics.models, 0)) == 0


def test_a_link_is_no_folder(tmp_path: Path) -> None:
    folder = lay_version(tmp_path / "bundle", "1")
    with pytest.raises(ConfigError, match="no symlink"):
        library.point(folder, folder)
    assert library.former_of(tmp_path / "nothing") is None
