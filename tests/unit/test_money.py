"""Conversion to minor units, against decimal arithmetic done one amount at a time."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import ConfigError
from stream.features.batch import NO_AMOUNT
from stream.features.money import MAX_AMOUNT, Rates

EXAMPLE = Path(__file__).parents[2] / "examples" / "rates.yaml"
RATES = Rates(
    "test", "USD", {"EUR": Fraction("1.0873"), "JPY": Fraction("0.006712"), "XHI": Fraction("89999.123456789")}
)


def slow_to_minor(rates: Rates, amount: float, currency: str) -> int:
    """The obvious way: the decimal that was written, times the rate, times 100, rounded half to even."""
    if not rates.knows(currency):
        return NO_AMOUNT
    rate = rates.rates.get(currency, Fraction(1))
    exact = Fraction(Decimal(repr(amount))) * rate * 100
    whole, rest = divmod(exact.numerator, exact.denominator)
    doubled = 2 * rest - exact.denominator
    return whole + (1 if doubled > 0 or (doubled == 0 and whole % 2 == 1) else 0)


amounts = st.one_of(
    st.integers(0, 10**5).map(lambda n: n / 1000),
    st.integers(0, 10**14).map(lambda n: n / 100),
    st.integers(10**14 - 1000, 10**14).map(lambda n: n / 100),
    st.integers(0, 10**15).map(lambda n: n / 1000),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(amounts, st.sampled_from(["USD", "EUR", "JPY", "XHI", "NOK"])), max_size=20))
def test_equals_decimal_arithmetic(rows: list[tuple[float, str]]) -> None:
    got = RATES.to_minor(np.array([a for a, _ in rows], np.float64), [c for _, c in rows])
    assert got.tolist() == [slow_to_minor(RATES, a, c) for a, c in rows]


def test_the_twin_rounds_as_decimal_does() -> None:
    for text in ("0.005", "0.015", "0.025", "2.675", "1.005", "999999999999.985"):
        by_decimal = (Decimal(text) * 100).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
        assert slow_to_minor(RATES, float(text), "USD") == int(by_decimal)


def test_halves_go_to_the_even_neighbour() -> None:
    got = RATES.to_minor(np.array([0.005, 0.015, 0.025, 2.675, 1.005]), ["USD"] * 5)
    assert got.tolist() == [0, 2, 2, 268, 100]


def test_two_decimals_are_exact_up_to_the_largest_amount() -> None:
    minor = np.array([10**14, 10**14 - 1, 123_456_789_012_34], np.int64)
    assert RATES.to_minor(minor / 100, ["USD"] * 3).tolist() == minor.tolist()


def test_an_unknown_currency_is_flagged_never_guessed() -> None:
    got = Rates.base_only().to_minor(np.array([1.0, 2.0]), ["EUR", "USD"])
    assert got.tolist() == [NO_AMOUNT, 200]
    assert Rates.base_only().version == "base-only"


@pytest.mark.parametrize("amount", [-0.01, np.nan, np.inf, MAX_AMOUNT * 1.01])
def test_refuses_what_is_no_amount(amount: float) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        RATES.to_minor(np.array([1.0, amount]), ["USD", "USD"])


def test_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="2 amounts but 1"):
        RATES.to_minor(np.array([1.0, 2.0]), ["USD"])


def test_empty_batch() -> None:
    assert RATES.to_minor(np.empty(0), []).shape == (0,)


def test_the_example_file_loads_exactly() -> None:
    rates = Rates.load(EXAMPLE)
    assert rates.base == "USD"
    assert "illustrative" in rates.version
    assert rates.rates["JPY"] == Fraction(67, 10_000)
    assert rates.to_minor(np.array([100.0]), ["EUR"]).tolist() == [10_800]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: a\nbase: USD\n", "exactly the fields"),
        ("version: ''\nbase: USD\nrates: {}\n", "version"),
        ("version: a\nbase: usd\nrates: {}\n", "base: 'usd'"),
        ("version: a\nbase: USD\nrates: []\n", "rates must be a table"),
        ("version: a\nbase: USD\nrates: {EURO: 1}\n", "'EURO'"),
        ("version: a\nbase: USD\nrates: {EUR: 0}\n", "rates.EUR"),
        ("version: a\nbase: USD\nrates: {EUR: 90000.1}\n", "rates.EUR"),
        ("version: a\nbase: USD\nrates: {EUR: 1e3}\n", "rates.EUR"),
        ("version: a\nbase: USD\nrates: {EUR: }\n", "rates.EUR"),
        ("version: a\nbase: USD\nrates: {USD: 2}\n", "base currency"),
        ("version: [\n", "not YAML"),
    ],
)
def test_a_wrong_file_names_itself_and_the_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Rates.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Rates.load(tmp_path / "none.yaml")
