"""What a model's world looked like when it was made: the shares that drift is measured against."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
_TOLERANCE = 1e-6


class ReferenceShares(BaseModel):
    """How the values of one column were spread over bins.

    `number`: value v is in bin `searchsorted(edges, v, side="right")`. `code`: a bin for each code in `codes`, in
    their order, then one for all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["number", "code"]
    edges: tuple[FiniteFloat, ...] = ()
    codes: tuple[int, ...] = ()
    shares: tuple[Share, ...]
    """One per bin."""
    missing: Share
    """The share of NaN. With `shares` it sums to 1."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bins = len(self.edges if self.kind == "number" else self.codes) + 1
        if len(self.shares) != bins:
            raise ValueError(f"shares: {bins} bins need as many shares, not {len(self.shares)}")
        if any(later <= earlier for earlier, later in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must rise")
        if len(set(self.codes)) != len(self.codes):
            raise ValueError("codes repeat")
        if abs(sum(self.shares) + self.missing - 1) > _TOLERANCE:
            raise ValueError("shares and missing must sum to 1")
        return self

    @property
    def bins(self) -> int:
        """Bins, the last of them for what is missing."""
        return len(self.shares) + 1

    @property
    def expected(self) -> NDArray[np.float64]:
        """(bins,) shares, the last of them that of what is missing."""
        return np.array([*self.shares, self.missing])

    def places(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bin of each value (N,): 0 to bins - 1; NaN is in the last."""
        if self.kind == "number":
            places = np.searchsorted(np.array(self.edges), values, side="right")
        else:
            order = np.argsort(np.array(self.codes))
            codes = np.array(self.codes, dtype=np.float64)[order]
            near = np.minimum(np.searchsorted(codes, values), max(len(codes) - 1, 0))
            found = (codes[near] == values) if len(codes) else np.zeros(len(values), dtype=np.bool_)
            places = np.where(found, order[near] if len(codes) else 0, len(codes))
        return np.where(np.isnan(values), self.bins - 1, places).astype(np.int64)


class Reference(BaseModel):
    """The reference of one bundle: of a period as it was in production, not of a balanced sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: Annotated[int, Field(ge=1)]
    """Events that the shares are of."""
    probability: ReferenceShares
    """Of the model's calibrated probability."""
    columns: dict[str, ReferenceShares]
    """Of the aggregate columns that matter most to the model, the most important first."""
