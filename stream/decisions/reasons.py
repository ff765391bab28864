"""From contributions to words: the top factors of an alert, with the values behind them."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream.errors import ConfigError
from stream.events.records import Reason
from stream.features.spec import Column, ReasonTemplate

MOST_REASONS = 3
_MOST_VALUES = 2
"""Values named by the words that serve a group without a fitting template."""


class Explainer:
    """Words for the groups of one domain. Made once; holds no other state."""

    def __init__(
        self,
        groups: Sequence[str],
        columns: Sequence[Column],
        templates: Sequence[ReasonTemplate],
        references: Mapping[str, float | None],
        *,
        most_reasons: int = MOST_REASONS,
    ) -> None:
        """`groups`: the G names of the contributions; `columns`: the D aggregates; `references`: their usual values.

        ConfigError for a template that names an unknown column or cannot be filled in.
        """
        self._groups = tuple(groups)
        self._columns = {column.name: place for place, column in enumerate(columns)}
        self._numbers = {
            group: [c.name for c in columns if c.group == group and c.cardinality == 0] for group in self._groups
        }
        self._templates = {group: [t for t in templates if t.group == group] for group in self._groups}
        self._named = {template: self._check(template) for template in templates}
        self._references = references
        self._most = most_reasons

    def explain(self, contributions: NDArray[np.floating], aggregates: NDArray[np.float32]) -> list[list[Reason]]:
        """For each of A events the groups that raised its score most, greatest first; lowering ones never.

        contributions (A, G) in log-odds, aggregates (A, D) with NaN for missing. Pure.
        """
        return [self._of_one(one, values) for one, values in zip(contributions, aggregates, strict=True)]

    def _of_one(self, contributions: NDArray[np.floating], values: NDArray[np.float32]) -> list[Reason]:
        order = np.argsort(-np.nan_to_num(contributions, nan=0.0, posinf=0.0, neginf=0.0), kind="stable")
        chosen = [place for place in order[: self._most].tolist() if 0 < contributions[place] < math.inf]
        return [self._of_group(self._groups[place], float(contributions[place]), values) for place in chosen]

    def _of_group(self, group: str, contribution: float, values: NDArray[np.float32]) -> Reason:
        for template in self._templates[group]:
            named = self._named[template]
            if self._fits(template, named, values):
                found = {name: _rounded(values[self._columns[name]]) for name in named}
                text = template.text.format(**found)
                return _reason(template.code, group, contribution, text, found)
        return self._without_template(group, contribution, values)

    def _fits(self, template: ReasonTemplate, named: Sequence[str], values: NDArray[np.float32]) -> bool:
        present = all(math.isfinite(values[self._columns[name]]) for name in named)
        return present and all(low <= values[self._columns[name]] <= high for name, low, high in template.when)

    def _without_template(self, group: str, contribution: float, values: NDArray[np.float32]) -> Reason:
        """The group's name and its values that lie farthest from the usual ones."""
        found = {name: _rounded(values[self._columns[name]]) for name in self._numbers[group]}
        present = {name: value for name, value in found.items() if math.isfinite(value)}
        farthest = sorted(present, key=lambda name: -self._distance(name, present[name]))[:_MOST_VALUES]
        parts = [f"{name} {present[name]:g}{self._usual(name)}" for name in farthest]
        if found and not parts:
            parts = ["all its values are missing"]
        text = f"unusual {group}" + (f": {', '.join(parts)}" if parts else "")
        return _reason(group.upper(), group, contribution, text, {name: present[name] for name in farthest})

    def _distance(self, name: str, value: float) -> float:
        """asinh grows like a logarithm on both sides of 0: days, counts and sums become comparable."""
        return abs(math.asinh(value) - math.asinh(self._references.get(name) or 0.0))

    def _usual(self, name: str) -> str:
        usual = self._references.get(name)
        return "" if usual is None else f" (usually {_rounded(usual):g})"

    def _check(self, template: ReasonTemplate) -> tuple[str, ...]:
        """The columns that a template's text names."""
        try:
            parsed = [name for _, name, _, _ in string.Formatter().parse(template.text) if name is not None]
            template.text.format(**dict.fromkeys(parsed, 1.0))
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise ConfigError(f"reason {template.code!r}: its text cannot be filled in ({error})") from None
        named = tuple(dict.fromkeys(parsed))
        for name in (*named, *(bound[0] for bound in template.when)):
            if name not in self._columns:
                raise ConfigError(f"reason {template.code!r}: no aggregate column {name!r}")
        return named


def _reason(code: str, group: str, contribution: float, text: str, values: dict[str, float]) -> Reason:
    return Reason(code=code, group=group, contribution=round(contribution, 4), text=text, values=values)


def _rounded(value: float | np.floating) -> float:
    """Six digits: float32 holds no more, and 0.1 must not read 0.10000000149."""
    return float(f"{float(value):.6g}")
