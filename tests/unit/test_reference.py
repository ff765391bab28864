"""The reference of drift: bins that count what a plain loop counts, shares that sum to one, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.reference import COLUMNS, category_distribution, number_distribution
from stream.errors import BundleRefused
from stream.scoring import bundle
from stream.scoring.reference import Distribution, read_reference
from tests.unit.model_fixtures import lay_out, quick_bundle, reseal

SHARES = (0.25, 0.5, 0.75)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=40), st.integers(0, 1000))
def test_counts_are_those_of_a_plain_loop(drawn: list[int | None], seed: int) -> None:
    values = np.array([np.nan if value is None else value for value in drawn], np.float32)
    others = np.random.default_rng(seed).integers(-9, 9, 50).astype(np.float32)
    numbers, codes = number_distribution(values, SHARES), category_distribution(np.abs(values))
    for value in [*values.tolist(), *others.tolist()]:
        slot = len(numbers.shares) if np.isnan(value) else sum(edge <= value for edge in numbers.edges)
        assert numbers.counts(np.array([value], np.float32)).argmax() == slot
        code = abs(value)
        slot = len(codes.codes) if code not in codes.codes else codes.codes.index(code)
        slot = len(codes.shares) if np.isnan(value) else slot
        assert codes.counts(np.array([code], np.float32)).argmax() == slot
    for distribution, seen in ((numbers, values), (codes, np.abs(values))):
        assert distribution.counts(seen).sum() == len(seen)
        np.testing.assert_allclose(distribution.counts(seen) / len(seen), distribution.all_shares())


def test_rounding_moves_no_value_over_an_edge() -> None:
    values = np.repeat(np.arange(40, dtype=np.float32), 25)
    distribution = number_distribution(values, SHARES)
    moved = np.nextafter(values, np.float32(1e9))
    assert (distribution.counts(values) == distribution.counts(moved)).all()
    assert min(distribution.shares) > 0.2


def test_a_bundle_has_a_reference_that_a_worker_can_read(tmp_path: Path) -> None:
    domain, files = quick_bundle()
    verified = bundle.verify(lay_out(tmp_path / "b", files), domain=domain)
    reference = verified.reference
    assert reference is not None
    assert reference.events == verified.manifest.training.validation_events
    assert 0 < len(reference.columns) <= COLUMNS
    assert set(reference.columns) <= {column.name for column in domain.aggregate_columns}
    assert reference.from_ms < reference.to_ms
    assert verified.manifest.review_by_ms is not None
    assert verified.manifest.review_by_ms > verified.manifest.created_ms


def test_a_bundle_without_one_verifies_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    domain, files = quick_bundle()
    without = reseal({name: content for name, content in files.items() if name != "reference.json"})
    assert bundle.verify(lay_out(tmp_path / "without", without), domain=domain).reference is None
    broken = reseal({**files, "reference.json": b'{"format_version": 1}'})
    with pytest.raises(BundleRefused, match=r"reference\.json: from_ms"):
        bundle.verify(lay_out(tmp_path / "broken", broken), domain=domain)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shares": [0.5, 0.4]}, "sum to 1"),
        ({"edges": [1.0, 0.0], "shares": [0.5, 0.25, 0.25]}, "ascend"),
        ({"edges": [0.0, 1.0]}, "need 3 shares"),
        ({"edges": [float("nan")]}, "finite"),
    ],
)
def test_a_distribution_that_does_not_add_up_is_refused(changes: dict[str, object], match: str) -> None:
    good = {"kind": "number", "edges": [0.0], "shares": [0.5, 0.5]}
    Distribution.model_validate(good)
    fields = {"from_ms": 0, "to_ms": 1, "events": 2, "score": good | changes, "columns": {}}
    with pytest.raises(BundleRefused, match=match):
        read_reference(json.dumps(fields).encode())
