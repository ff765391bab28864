"""Folds in time: what they may know, whom they leave out, and the whole of it into a report."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.baselines import BASELINES, Data
from models.card import card_files
from models.dataset import TrainingSet
from models.evaluation import difference, evaluate_bundles, evaluate_folds
from models.export import export_bundle
from models.fitting import FitOptions
from models.nets.risknet import NetOptions
from models.prequential import NET, FoldOptions, compromised, plan, run
from models.report.page import render, write
from models.splits import split
from models.train import TrainOptions, silent, train
from stream.clock import ManualClock
from stream.errors import ConfigError
from stream.scoring.bundle import verify
from tests.unit.model_fixtures import DAY_MS, START_MS, planted, quick_options

NET_OPTIONS = NetOptions(architecture="mlp", hidden=8, embedding=2, width=16, knots=4)
FIT = FitOptions(epochs=2, batch_size=64, learning_rate=1e-2, epoch_steps=1)
FOLDS = FoldOptions(test_ms=10 * DAY_MS, folds=2, baselines=())


def options(dataset: TrainingSet) -> TrainOptions:
    return quick_options(dataset, net=NET_OPTIONS, fit=FIT)


def test_folds_lie_back_to_back_and_end_with_the_history() -> None:
    dataset = planted(1, 1000)
    folds = plan(dataset, FoldOptions(test_ms=7 * DAY_MS, folds=3, train_ms=14 * DAY_MS), 2 * DAY_MS)
    assert folds[-1].end_ms == int(dataset.time_ms.max()) + 1
    for fold, following in itertools.pairwise(folds):
        assert fold.end_ms == following.moment_ms
    for fold in folds:
        assert fold.end_ms - fold.moment_ms == 7 * DAY_MS
        assert fold.moment_ms - 2 * DAY_MS - fold.from_ms == 14 * DAY_MS
    assert {fold.from_ms for fold in plan(dataset, FOLDS, 0)} == {int(dataset.time_ms.min())}


@pytest.mark.parametrize("changes", [{"folds": 9}, {"train_ms": 59 * DAY_MS}])
def test_a_history_that_is_too_short_is_told(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="fewer --folds"):
        plan(planted(1, 500), replace(FOLDS, **changes), 2 * DAY_MS)
    with pytest.raises(ConfigError, match="baselines"):
        replace(FOLDS, baselines=("xgboost",))


def test_known_compromised_accounts_are_those_of_a_plain_loop() -> None:
    dataset = planted(2, 600)
    dataset.known_ms[:] = dataset.time_ms + np.random.default_rng(0).integers(0, 9 * DAY_MS, len(dataset))
    found = compromised(dataset)
    assert 0 < found.sum() < len(dataset)
    for event in range(len(dataset)):
        day = dataset.time_ms[event] // DAY_MS * DAY_MS
        own = dataset.account == dataset.account[event]
        assert found[event] == bool((own & (dataset.label == 1) & (dataset.known_ms <= day)).any())


def test_what_a_fold_cannot_know_changes_none_of_its_scores() -> None:
    """Turns round every label that became known after the first fold's moment: its scores stay, later ones change."""
    dataset = planted(3, 2500, aggregate_signal=True)
    folds = plan(dataset, FOLDS, 2 * DAY_MS)
    expected = run(dataset, FOLDS, options(dataset), silent)[NET]
    late = dataset.known_ms > folds[0].moment_ms
    dataset.label[late] = 1 - dataset.label[late]
    got = run(dataset, FOLDS, options(dataset), silent)[NET]
    np.testing.assert_array_equal(got[0].scored.probability, expected[0].scored.probability)
    assert (got[0].scored.fraud != expected[0].scored.fraud).all()
    assert not np.array_equal(got[1].scored.probability, expected[1].scored.probability)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_finds_the_planted_signal_and_nothing_where_there_is_none(name: str) -> None:
    for signal in (True, False):
        dataset = planted(4, 2500, aggregate_signal=signal)
        dataset.aggregates[:, 2] = np.nan
        parts = split(dataset, START_MS + 50 * DAY_MS, 2 * DAY_MS, 0.2)
        known = np.union1d(parts.train, parts.validation)
        data = Data(dataset, parts.train, parts.validation, known)
        model = BASELINES[name](data, 0, 1)
        later = np.flatnonzero(dataset.time_ms > START_MS + 50 * DAY_MS)
        log_odds, fraud = model(data.features(later)), dataset.label[later] == 1
        top = fraud[np.argsort(-log_odds)[: fraud.sum()]].mean()
        assert top > 0.6 if signal else top < 0.35


def test_a_whole_evaluation_becomes_a_document_and_a_page(tmp_path: Path) -> None:
    dataset = planted(5, 2500, aggregate_signal=True)
    # A planted leak: this column was written after the verdict.
    dataset.aggregates[:, 3] = dataset.label + 0.1 * np.random.default_rng(0).normal(size=len(dataset))
    folds = replace(FOLDS, baselines=("logistic-regression",), exclude_compromised=True)
    document = evaluate_folds(dataset, folds, options(dataset), silent, command="riskstream evaluate")
    assert list(document["models"]) == [NET, "logistic-regression"]
    assert [fold["frauds"] for fold in document["folds"]] != [0, 0]
    assert any("a3 alone" in warning for warning in document["warnings"])
    assert {"channel", "amount"} <= set(document["segments"])
    beside = write(document, tmp_path / "report.html")
    assert json.loads(beside.read_text()) == json.loads(json.dumps(document))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "a3 alone" in page
    assert "src=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    # Nothing of a document may become markup.
    hostile = {**document, "title": "<script>alert(1)</script>"}
    assert "<script>alert" not in render(hostile)


def test_bundles_are_compared_on_the_same_events(tmp_path: Path) -> None:
    dataset = planted(6, 2500, aggregate_signal=True)
    bundles = []
    for name, seed in (("first", 0), ("second", 1)):
        own = replace(options(dataset), until_ms=START_MS + 45 * DAY_MS, seed=seed)
        trained = train(dataset, own)
        place = tmp_path / name
        export_bundle(
            trained,
            dataset.domain,
            place,
            name=name,
            version="1",
            command="riskstream train",
            clock=ManualClock(),
            more_files=card_files(trained, dataset, name=name, version="1", command="riskstream train"),
        )
        bundles.append(verify(place, domain=dataset.domain))
    document = evaluate_bundles(
        dataset,
        bundles,
        from_ms=START_MS + 50 * DAY_MS,
        to_ms=2**62,
        label_delay_ms=2 * DAY_MS,
        exclude_compromised=False,
        command="riskstream compare",
    )
    assert list(document["models"]) == ["first@1", "second@1"]
    assert document["warnings"] == []
    low, high = document["difference"]["average_precision"]["interval"]
    assert low <= document["difference"]["average_precision"]["value"] <= high
    assert "first@1 against second@1" in render(document)
    seen = evaluate_bundles(
        dataset, bundles[:1], from_ms=0, to_ms=2**62, label_delay_ms=0, exclude_compromised=False, command=""
    )
    assert any("has seen part of this period" in warning for warning in seen["warnings"])
    card = json.loads((tmp_path / "first" / "card.json").read_text())
    assert card["facts"]["How it was made"]["command"] == "riskstream train"
    assert next(iter(card["importance"]["columns"])) == "a0"
    assert card["facts"]["Data"]["fingerprint"] == dataset.fingerprint()
    assert "Model card of first@1" in (tmp_path / "first" / "report.html").read_text()


def test_a_model_does_not_differ_from_itself() -> None:
    dataset = planted(7, 1500, aggregate_signal=True)
    found = run(dataset, replace(FOLDS, folds=1), options(dataset), silent)[NET][0].scored
    same = difference(found, found)
    assert all(entry["value"] == 0 and entry["interval"] == [0.0, 0.0] for entry in same.values())
