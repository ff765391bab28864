"""When labels of a history must be folded: against a plain loop, and that waiting changes nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stream.history.due import NOWHERE, DueLabels, Places


@pytest.mark.parametrize("seed", range(20))
def test_places_are_those_of_a_plain_loop(seed: int) -> None:
    draw = random.Random(seed)
    values = [draw.choice([None, "a", "b", "c", "d"]) for _ in range(draw.randrange(1, 30))]
    places = Places(values)
    asked = [draw.choice([None, "a", "b", "c", "d", "never"]) for _ in range(40)]
    at = np.array([draw.randrange(len(values) + 1) for _ in asked], dtype=np.int64)
    code = np.array(places.codes_of(asked), dtype=np.int64)
    for value, known in zip(values, places.code.tolist(), strict=True):
        assert known == (NOWHERE if value is None else places.codes_of([value])[0])
    for value, start, found in zip(asked, at.tolist(), places.first(code, at).tolist(), strict=True):
        later = [i for i in range(start, len(values)) if values[i] == value and value is not None]
        assert found == (later[0] if later else len(values))


@pytest.mark.parametrize("seed", range(50))
def test_no_label_is_missed_where_it_is_needed_and_no_cut_is_in_vain(seed: int) -> None:
    draw, events = random.Random(seed), 40
    at = np.array([draw.randrange(events + 1) for _ in range(draw.randrange(12))], dtype=np.int64)
    needed = np.array([draw.randrange(start, events + 1) for start in at.tolist()], dtype=np.int64)
    due = DueLabels(at, needed, np.zeros(len(at), np.int64))
    cuts = due.cuts()
    assert cuts == sorted(set(cuts))
    for start, end in zip(at.tolist(), needed.tolist(), strict=True):
        assert any(start <= cut <= end for cut in cuts)
    for cut in cuts:
        others = [other for other in cuts if other != cut]
        spans = zip(at.tolist(), needed.tolist(), strict=True)
        assert any(not any(start <= other <= end for other in others) for start, end in spans)
