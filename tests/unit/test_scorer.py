"""The scorer: columns by name, scores that do not depend on the batch, failures that are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.export import script
from stream.errors import BundleRefused, ScoringFailed
from stream.scoring import bundle
from stream.scoring.scorer import CALL_EVENTS, TorchScorer, padded_size
from stream.scoring.torchscript import LoadedProgram
from tests.unit.model_fixtures import (
    lay_out,
    quick_bundle,
    quick_model,
    random_batch,
    reseal,
    tiny_domain,
    write_quick_bundle,
)
from tests.unit.scripted_nets import Brittle


@pytest.fixture
def scorer(tmp_path: Path) -> TorchScorer:
    domain, files = quick_bundle()
    return TorchScorer(bundle.verify(lay_out(tmp_path / "bundle", files), domain=domain), domain)


def test_scores_are_probabilities_with_their_log_odds(scorer: TorchScorer) -> None:
    scores = scorer.score(*random_batch(0, 200, quick_bundle()[0]))
    assert set(scores.components) == {"sequence", "aggregate"}
    for values in (scores.probability, *scores.components.values()):
        assert values.shape == (200,)
        assert values.dtype == np.float32
        assert ((values > 0) & (values < 1)).all()
    expected = 1.0 / (1.0 + np.exp(-scores.log_odds.astype(np.float64)))
    np.testing.assert_allclose(scores.probability, expected, atol=1e-6)
    assert scores.probability.std() > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 100])
def test_a_score_does_not_depend_on_the_batch(scorer: TorchScorer, size: int) -> None:
    batch = random_batch(1, 300, quick_bundle()[0])
    whole = scorer.score(*batch)
    parts = [scorer.score(*(array[at : at + size] for array in batch)) for at in range(0, 300, size)]
    for got, expected in [
        (np.concatenate([part.probability for part in parts]), whole.probability),
        (np.concatenate([part.components["sequence"] for part in parts]), whole.components["sequence"]),
        (np.concatenate([part.components["aggregate"] for part in parts]), whole.components["aggregate"]),
    ]:
        assert np.abs(got - expected).max() <= 1e-6


def test_what_pads_a_sequence_does_not_matter(scorer: TorchScorer) -> None:
    steps, lengths, aggregates = random_batch(2, 100, quick_bundle()[0])
    padded = steps.copy()
    padded[np.arange(steps.shape[1])[None, :] >= lengths[:, None]] = np.nan
    assert (lengths < steps.shape[1]).any()
    expected = scorer.score(steps, lengths, aggregates)
    np.testing.assert_array_equal(scorer.score(padded, lengths, aggregates).probability, expected.probability)


def test_absurd_and_missing_values_score(scorer: TorchScorer) -> None:
    steps, lengths, aggregates = random_batch(3, 8, quick_bundle()[0])
    for value in (np.nan, np.inf, -np.inf, 1e38, -1e38):
        scores = scorer.score(np.full_like(steps, value), lengths, np.full_like(aggregates, value))
        assert np.isfinite(scores.log_odds).all()


def test_an_empty_batch_gives_empty_scores(scorer: TorchScorer) -> None:
    scores = scorer.score(*random_batch(4, 0, quick_bundle()[0]))
    assert scores.probability.shape == (0,)
    assert set(scores.components) == {"sequence", "aggregate"}


def test_a_read_only_batch_is_scored_too(scorer: TorchScorer) -> None:
    batch = random_batch(5, 4, quick_bundle()[0])
    expected = scorer.score(*batch).probability
    for array in batch:
        array.flags.writeable = False
    np.testing.assert_array_equal(scorer.score(*batch).probability, expected)


def test_a_model_picks_its_columns_by_name(tmp_path: Path) -> None:
    """The same net, told that its columns have other places, must read them there and nothing else."""
    steps, aggregates = ("s2", "sc0", "s0"), ("a4", "a0", "ac0")
    domain = write_quick_bundle(tmp_path / "bundle", step_columns=steps, aggregate_columns=aggregates)
    verified = bundle.verify(tmp_path / "bundle", domain=domain)
    assert verified.manifest.step_columns == steps
    scorer = TorchScorer(verified, domain)
    batch = random_batch(6, 50, domain)
    expected = scorer.score(*batch)

    trained, _ = quick_model(step_columns=steps, aggregate_columns=aggregates)
    with torch.inference_mode():
        picked = torch.from_numpy(batch[0][:, :, [2, 4, 0]]), torch.from_numpy(batch[2][:, [4, 0, 5]])
        net = trained.net(picked[0], torch.from_numpy(batch[1]), picked[1])
    np.testing.assert_allclose(expected.probability, net["probability"].numpy(), atol=1e-6)

    unread_steps, unread_aggregates = batch[0].copy(), batch[2].copy()
    unread_steps[:, :, [1, 3]] += 5.0
    unread_aggregates[:, [1, 2, 3]] += 5.0
    again = scorer.score(unread_steps, batch[1], unread_aggregates)
    np.testing.assert_array_equal(again.probability, expected.probability)
    read = batch[2].copy()
    read[:, 0] += 5.0
    assert (scorer.score(batch[0], batch[1], read).probability != expected.probability).any()


def test_all_columns_in_order_need_no_gather() -> None:
    domain, files = quick_bundle()
    verified = bundle.VerifiedBundle(Path(), bundle.read_manifest(files["manifest.json"]), files["model.ts"])
    assert verified.step_index(domain) is None
    assert verified.aggregate_index(domain) is None
    other = tiny_domain(step=5)
    index = verified.step_index(other)
    assert index is not None
    assert index.tolist() == [0, 1, 2, 3, 5]


def brittle_scorer() -> TorchScorer:
    """Gives NaN where the first aggregate is 1, raises where it is 2, infinity where it is 3, else 0.5."""
    domain, files = quick_bundle()
    program = script(Brittle(), random_batch(0, 2, domain))
    manifest = bundle.read_manifest(reseal(files)["manifest.json"])
    return TorchScorer(bundle.VerifiedBundle(Path(), manifest, program), domain)


@pytest.mark.parametrize(("value", "match"), [(1.0, "not finite"), (2.0, "raised"), (3.0, "not finite")])
def test_a_model_that_fails_is_told_by_name(value: float, match: str) -> None:
    scorer = brittle_scorer()
    steps, lengths, aggregates = random_batch(0, 4, quick_bundle()[0])
    aggregates[:, 0] = 0.0
    np.testing.assert_array_equal(scorer.score(steps, lengths, aggregates).probability, np.float32(0.5))
    aggregates[2, 0] = value
    with pytest.raises(ScoringFailed, match=rf"tiny@1.*{match}"):
        scorer.score(steps, lengths, aggregates)
    aggregates[2, 0] = 0.0
    np.testing.assert_array_equal(scorer.score(steps, lengths, aggregates).probability, np.float32(0.5))


def test_arrays_of_the_wrong_shape_fail(scorer: TorchScorer) -> None:
    steps, lengths, aggregates = random_batch(0, 4, quick_bundle()[0])
    with pytest.raises(ScoringFailed):
        scorer.score(steps[:, :, :-1], lengths, aggregates)
    with pytest.raises(ScoringFailed):
        scorer.score(steps, lengths - lengths, aggregates)


def test_a_program_that_cannot_run_is_refused_at_once() -> None:
    domain, files = quick_bundle()
    manifest = bundle.read_manifest(files["manifest.json"])
    with pytest.raises(BundleRefused, match=r"model\.ts"):
        TorchScorer(bundle.VerifiedBundle(Path(), manifest, b"no program"), domain)
    narrow = tiny_domain(step=3)
    with pytest.raises(BundleRefused, match="the domain lacks"):
        TorchScorer(bundle.VerifiedBundle(Path(), manifest, files["model.ts"]), narrow)


def test_threads_are_set() -> None:
    domain, files = quick_bundle()
    manifest = bundle.read_manifest(files["manifest.json"])
    before = torch.get_num_threads()
    try:
        TorchScorer(bundle.VerifiedBundle(Path(), manifest, files["model.ts"]), domain, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_few_batch_sizes_are_run() -> None:
    """The vendor keeps a compiled form of each: what a worker holds must not grow with every size that it meets."""
    sizes = [padded_size(size) for size in range(CALL_EVENTS + 1)]
    assert all(size <= padded <= min(size + 31, CALL_EVENTS) for size, padded in enumerate(sizes))
    assert sizes[:9] == list(range(9))
    assert len(set(sizes)) <= 24
    assert all(padded_size(padded) == padded for padded in sizes)


def test_what_pads_a_batch_does_not_matter(tmp_path: Path) -> None:
    domain, files = quick_bundle()
    verified = bundle.verify(lay_out(tmp_path / "bundle", files), domain=domain)
    scorer, program = TorchScorer(verified, domain), LoadedProgram(verified.program)
    for size in (9, 63, 65, 129, 2 * CALL_EVENTS, 3 * CALL_EVENTS + 1):
        batch = random_batch(size, size, domain)
        direct = program.run(*batch)["probability"]
        scores = scorer.score(*batch)
        assert scores.probability.shape == (size,)
        np.testing.assert_allclose(scores.probability, direct, rtol=0, atol=1e-6)
