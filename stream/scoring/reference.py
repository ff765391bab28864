"""What scores and features looked like when the model was made: the reference of drift, a file of the bundle.

    reference.json   shares of events by bin, of the score and of the columns that matter most

Bins of numbers: bin i holds edges[i-1] <= value < edges[i], the outer ones are open. Bins of a category: one per
listed code, the rest is `other`. `missing` is the share of NaN. All shares of one distribution sum to 1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stream.errors import BundleRefused

REFERENCE_FILE = "reference.json"

Share = Annotated[float, Field(ge=0, le=1)]


class Distribution(BaseModel):
    """How the values of one column, or the scores, were spread."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["number", "category"]
    edges: tuple[float, ...] = ()
    """Of a number: the E inner edges of E + 1 bins, ascending."""
    codes: tuple[int, ...] = ()
    """Of a category: the codes that have a bin of their own; one more bin holds all others."""
    shares: tuple[Share, ...]
    """Of each bin."""
    missing: Share = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        inner = self.edges if self.kind == "number" else self.codes
        if len(self.shares) != len(inner) + 1:
            raise ValueError(f"{len(inner)} edges or codes need {len(inner) + 1} shares, not {len(self.shares)}")
        if list(inner) != sorted(set(inner)):
            raise ValueError("edges and codes must ascend")
        if abs(sum(self.shares) + self.missing - 1.0) > 1e-6:
            raise ValueError("the shares and `missing` must sum to 1")
        return self

    def counts(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """(bins + 1,): how many of the values (N,) fall into each bin; the last counts the missing (NaN)."""
        missing = np.isnan(values)
        present = values[~missing]
        if self.kind == "number":
            which = np.searchsorted(np.asarray(self.edges, present.dtype), present, side="right")
        else:
            codes = np.asarray(self.codes, dtype=np.int64)
            whole = present.astype(np.int64)
            place = np.searchsorted(codes, whole)
            known = (place < len(codes)) & (np.append(codes, -1)[place] == whole)
            which = np.where(known, place, len(codes))
        return np.append(np.bincount(which, minlength=len(self.shares)), missing.sum()).astype(np.int64)

    def all_shares(self) -> NDArray[np.float64]:
        """(bins + 1,): the shares, with the missing last, in the order of `counts`."""
        return np.array([*self.shares, self.missing])


class Reference(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    from_ms: int
    to_ms: int
    """The period that the shares are of: event times from `from_ms` to before `to_ms`."""
    events: int
    score: Distribution
    """Of the output `probability`."""
    columns: dict[str, Distribution]
    """Aggregate column -> its spread, in order of importance, the most important first."""

    def content(self) -> bytes:
        """The file's bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def read_reference(content: bytes) -> Reference:
    """The reference in these bytes. BundleRefused when they are none."""
    try:
        return Reference.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise BundleRefused(f"{REFERENCE_FILE}: {place}: {first['msg']}") from None
