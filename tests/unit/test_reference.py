"""Reference shares: bins against a slow twin, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stream.scoring.reference import ReferenceShares

EDGES = (-1.0, 0.0, 2.5)
CODES = (7, 3, 900)


def slow_place(shares: ReferenceShares, value: float) -> int:
    if math.isnan(value):
        return len(shares.shares)
    if shares.kind == "number":
        return sum(1 for edge in shares.edges if edge <= value)
    return shares.codes.index(int(value)) if value in shares.codes else len(shares.codes)


@given(st.lists(st.sampled_from([-5.0, -1.0, -0.5, 0.0, 2.0, 2.5, 3.0, 7.0, 900.0, math.nan, math.inf, -math.inf])))
def test_the_bins_are_those_of_the_slow_twin(values: list[float]) -> None:
    for shares in (
        ReferenceShares(kind="number", edges=EDGES, shares=(0.25, 0.25, 0.25, 0.15), missing=0.1),
        ReferenceShares(kind="code", codes=CODES, shares=(0.25, 0.25, 0.25, 0.15), missing=0.1),
        ReferenceShares(kind="number", shares=(0.9,), missing=0.1),
        ReferenceShares(kind="code", shares=(1.0,), missing=0.0),
    ):
        got = shares.places(np.array(values, dtype=np.float64))
        assert got.tolist() == [slow_place(shares, value) for value in values]
        assert len(shares.expected) == shares.bins == len(shares.shares) + 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shares": (0.5, 0.5)}, "as many shares"),
        ({"edges": (0.0, 0.0, 1.0)}, "rise"),
        ({"missing": 0.5}, "sum to 1"),
        ({"kind": "code", "edges": (), "codes": (1, 1, 2)}, "repeat"),
        ({"edges": (0.0, math.nan, 1.0)}, "finite"),
    ],
)
def test_inconsistent_shares_are_refused(change: dict[str, object], word: str) -> None:
    good = {"kind": "number", "edges": EDGES, "shares": (0.25, 0.25, 0.25, 0.15), "missing": 0.1}
    ReferenceShares.model_validate(good)
    with pytest.raises(ValidationError, match=word):
        ReferenceShares.model_validate(good | change)
