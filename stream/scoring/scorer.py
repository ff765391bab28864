"""What the engine asks of a model, and the TorchScript implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.errors import BundleRefused, ScoringFailed
from stream.features.spec import Domain
from stream.scoring.bundle import Manifest, VerifiedBundle

CALL_EVENTS = 256
"""Most events of one call of the program: beyond it what lies between its layers leaves the cache (15 us an event
at 2,048, 13 at 256), and each thread would keep larger buffers."""
_WARM_UP_SIZES = (1, 2, 16, 64, CALL_EVENTS)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of B events; every array is (B,) float32 and finite."""

    probability: NDArray[np.float32]
    """Calibrated probability of fraud."""
    log_odds: NDArray[np.float32]
    """ln(p / (1 - p)) of it, unrounded at the ends: what an attribution takes differences of."""
    components: dict[str, NDArray[np.float32]]
    """The model's other probabilities by name ("sequence", "aggregate")."""


class Scorer(Protocol):
    """A model that is ready to run."""

    @property
    def manifest(self) -> Manifest: ...

    def score(self, steps: NDArray[np.float32], lengths: NDArray[np.int64], aggregates: NDArray[np.float32]) -> Scores:
        """Scores B events: steps (B,T,F) and aggregates (B,D) hold all of the domain's columns, lengths is (B,).

        Blocks. ScoringFailed when the model raises or an output is not finite. An event's score does not
        depend on what else is in the batch, to 1e-6.
        """
        ...


def padded_size(size: int) -> int:
    """The batch size that is run for so many events: their number up to 8, then multiples of 8, above 64 of 32.

    The vendor's kernels keep one compiled form for every size that they have met (oneDNN: up to 1,024): with all
    sizes up to 512 a worker grew by 160 MB. A few sizes are met again soon, and few have to be compiled in service.
    """
    step = 1 if size <= 8 else 8 if size <= 64 else 32
    return -(-size // step) * step


def _padded(array: NDArray[Any], room: int, value: int = 0) -> NDArray[Any]:
    """The array with so many more rows of a value."""
    return np.concatenate((array, np.full((room, *array.shape[1:]), value, dtype=array.dtype)))


class TorchScorer:
    """Runs a verified bundle. Importing torch and a warm-up happen here, so that no scored event waits for them."""

    def __init__(self, bundle: VerifiedBundle, domain: Domain, *, threads: int = 1) -> None:
        """`domain` says which columns `score` will be given. `threads` holds for the process. Blocks (about 50 ms).

        BundleRefused when the domain lacks a column, or the program does not run.
        """
        from stream.scoring.torchscript import LoadedProgram, ProgramFailed, set_threads  # noqa: PLC0415

        self._failure = ProgramFailed
        self._manifest = bundle.manifest
        self._step_index = bundle.step_index(domain)
        self._aggregate_index = bundle.aggregate_index(domain)
        self._widths = (len(domain.step_columns), len(domain.aggregate_columns))
        set_threads(threads)
        try:
            self._program = LoadedProgram(bundle.program)
            self._warm_up()
        except (ProgramFailed, ScoringFailed) as error:
            raise BundleRefused(f"model.ts: {error}") from None

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def score(self, steps: NDArray[np.float32], lengths: NDArray[np.int64], aggregates: NDArray[np.float32]) -> Scores:
        if len(lengths) == 0:
            empty = np.zeros(0, dtype=np.float32)
            return Scores(empty, empty, dict.fromkeys(self._manifest.components, empty))
        portions = [slice(start, start + CALL_EVENTS) for start in range(0, len(lengths), CALL_EVENTS)]
        calls = [self._call(steps[some], lengths[some], aggregates[some]) for some in portions]
        outputs = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
        for name, values in outputs.items():
            if values.shape != lengths.shape or not np.isfinite(values).all():
                raise ScoringFailed(f"model {self._manifest.label}: output {name!r} has a value that is not finite")
        components = {name: outputs[name] for name in self._manifest.components}
        return Scores(outputs["probability"], outputs["log_odds"], components)

    def _call(
        self, steps: NDArray[np.float32], lengths: NDArray[np.int64], aggregates: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """The program's outputs for at most CALL_EVENTS events, those that it makes for the padding left away."""
        if self._step_index is not None:
            steps = np.take(steps, self._step_index, axis=2)
        if self._aggregate_index is not None:
            aggregates = np.take(aggregates, self._aggregate_index, axis=1)
        size = len(lengths)
        room = padded_size(size) - size
        if room:
            steps, lengths, aggregates = _padded(steps, room), _padded(lengths, room, 1), _padded(aggregates, room)
        try:
            outputs = self._program.run(steps, lengths, aggregates)
        except self._failure as error:
            raise ScoringFailed(f"model {self._manifest.label} {error}") from None
        return {name: values[:size] for name, values in outputs.items()}

    def _warm_up(self) -> None:
        """The first call of each batch size builds kernels: do that for common sizes now."""
        width, depth = self._widths
        for size in _WARM_UP_SIZES:
            steps = np.zeros((size, self._manifest.sequence_length, width), dtype=np.float32)
            self.score(steps, np.ones(size, dtype=np.int64), np.zeros((size, depth), dtype=np.float32))
