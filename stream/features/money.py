"""Money as integers: 1/100 of the domain's base currency, through a versioned table of rates.

A rate is the value of one major unit of a currency in major units of the base ("EUR: 1.0873" with
base USD). Conversion is exact integer arithmetic with one rounding, half to even, at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stream.errors import ConfigError
from stream.features.batch import F64, I64, NO_AMOUNT

MAX_AMOUNT = 1e12
"""Largest amount in major units. Below it, 1/1000 of a unit is exact in float64."""

_THOUSANDTHS = 1000
_INT64_SAFE = 2**62
_CURRENCY = re.compile(r"[A-Z]{3}")
_DECIMAL = re.compile(r"\d{1,5}(\.\d{1,9})?")
_LARGEST_RATE = 90_000  # times MAX_AMOUNT in minor units still fits an int64


@dataclass(frozen=True)
class Rates:
    """A versioned table of exchange rates. `rates` need not name the base, which is worth 1."""

    version: str
    base: str
    rates: Mapping[str, Fraction]

    @classmethod
    def base_only(cls, base: str = "USD") -> Rates:
        """The table that knows one currency: every other one gets NO_AMOUNT."""
        return cls(version="base-only", base=base, rates={})

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Reads a YAML table (`version`, `base`, `rates`). Blocks on the file. ConfigError names file and field.

        The scalars are read as text, so a rate is exactly the decimal that stands in the file.
        """
        try:
            document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        except OSError as error:
            raise ConfigError(f"rates {path}: cannot be read ({error.strerror}); give a YAML file") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"rates {path}: not YAML: {error}") from error
        if not isinstance(document, dict) or set(document) != {"version", "base", "rates"}:
            raise ConfigError(f"rates {path}: must have exactly the fields version, base and rates")
        version, base = document["version"], document["base"]
        if not isinstance(version, str) or not version:
            raise ConfigError(f"rates {path}: version must be a text that is not empty, such as '2026-11-01'")
        _require_currency(path, "base", base)
        return cls(version=version, base=base, rates=_read_rates(path, base, document["rates"]))

    def knows(self, currency: str) -> bool:
        """Whether an amount in this currency can be converted."""
        return currency == self.base or currency in self.rates

    def to_minor(self, amounts: F64, currencies: Sequence[str]) -> I64:
        """Amounts (B,) in major units of `currencies` (length B) as (B,) int64 in 1/100 of the base currency.

        NO_AMOUNT where the currency has no rate. An amount counts to its third decimal; with at most three
        decimals the result is that of exact decimal arithmetic, rounded half to even.
        ValueError when an amount is not a finite number in [0, MAX_AMOUNT].
        """
        if len(amounts) != len(currencies):
            raise ValueError(f"{len(amounts)} amounts but {len(currencies)} currencies")
        if not bool(np.all((amounts >= 0) & (amounts <= MAX_AMOUNT))):
            raise ValueError(f"amounts must be finite numbers from 0 to {MAX_AMOUNT:g}")
        index, numerators, denominators, largest = self._table
        code = np.fromiter((index.get(c, -1) for c in currencies), np.int64, len(currencies))
        thousandths = np.rint(amounts * _THOUSANDTHS).astype(np.int64)
        minor = _divide_half_even(np.minimum(thousandths, largest[code]) * numerators[code], denominators[code])
        for row in np.flatnonzero((thousandths > largest[code]) & (code >= 0)):
            product = int(thousandths[row]) * int(numerators[code[row]])
            minor[row] = round(Fraction(product, int(denominators[code[row]])))
        minor[code < 0] = NO_AMOUNT
        return minor

    @cached_property
    def _table(self) -> tuple[dict[str, int], I64, I64, I64]:
        """Currency -> row; minor units per 1/1000 major unit as numerator and denominator; the largest
        count of thousandths whose product with the numerator fits an int64."""
        rates = {**self.rates, self.base: Fraction(1)}
        per_thousandth = {currency: rate * Fraction(100, _THOUSANDTHS) for currency, rate in rates.items()}
        numerators = np.array([f.numerator for f in per_thousandth.values()], np.int64)
        denominators = np.array([f.denominator for f in per_thousandth.values()], np.int64)
        return {c: i for i, c in enumerate(per_thousandth)}, numerators, denominators, _INT64_SAFE // numerators


def _divide_half_even(numerator: I64, denominator: I64) -> I64:
    """Rounded quotients of non-negative integers; a half goes to the even neighbour."""
    quotient, remainder = np.divmod(numerator, denominator)
    # Compared with what is left rather than doubled: doubling a remainder near 2**62 would overflow.
    left = denominator - remainder
    up = (remainder > left) | ((remainder == left) & (quotient % 2 == 1))
    return np.asarray(quotient + up, dtype=np.int64)


def _require_currency(path: Path, where: str, value: Any) -> None:
    if not isinstance(value, str) or _CURRENCY.fullmatch(value) is None:
        raise ConfigError(f"rates {path}: {where}: {value!r} is not an ISO 4217 code such as 'EUR'")


def _read_rates(path: Path, base: str, table: Any) -> dict[str, Fraction]:
    if not isinstance(table, dict):
        raise ConfigError(f"rates {path}: rates must be a table of currency and value in {base}, such as 'EUR: 1.09'")
    rates: dict[str, Fraction] = {}
    for currency, text in table.items():
        _require_currency(path, "rates", currency)
        if not isinstance(text, str) or _DECIMAL.fullmatch(text) is None or not 0 < Fraction(text) <= _LARGEST_RATE:
            raise ConfigError(
                f"rates {path}: rates.{currency}: {text!r} must be a decimal above 0 and up to {_LARGEST_RATE}, "
                f"with at most 9 digits after the point: the value of one {currency} in {base}"
            )
        if currency == base and Fraction(text) != 1:
            raise ConfigError(f"rates {path}: rates.{currency}: the base currency is worth 1; leave it out")
        rates[currency] = Fraction(text)
    return rates
