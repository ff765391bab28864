"""The only module of stream that imports torch: loads a TorchScript program and runs it on numpy arrays."""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from stream.errors import RiskstreamError

_SHAREABLE: Final = ("C", "W")
"""What torch asks of an array whose memory it shares; another is copied."""


class ProgramFailed(RiskstreamError):
    """The program could not be loaded or raised while it ran. The message is torch's, shortened."""


class LoadedProgram:
    """A TorchScript program on the CPU. Call it from one thread at a time."""

    def __init__(self, program: bytes) -> None:
        """`program` is a TorchScript archive. Verify its hash first: it is code."""
        try:
            with warnings.catch_warnings():
                # TorchScript is deprecated since torch 2.11; the bundle carries a torch.export twin for that day.
                warnings.simplefilter("ignore")
                self._module = torch.jit.load(io.BytesIO(program), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise ProgramFailed(f"does not load: {_first_line(error)}") from None

    def run(
        self, steps: NDArray[np.float32], lengths: NDArray[np.int64], aggregates: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """One call: (B,T,F), (B,), (B,D) give the named outputs, each (B,). Blocks; ProgramFailed."""
        inputs = (
            torch.from_numpy(np.require(steps, np.float32, _SHAREABLE)),
            torch.from_numpy(np.require(lengths, np.int64, _SHAREABLE)),
            torch.from_numpy(np.require(aggregates, np.float32, _SHAREABLE)),
        )
        try:
            # The profiling executor compiles during the first calls (41 and 8 ms measured, against 2 and 0.6)
            # and gains nothing on a frozen graph on the CPU.
            with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                outputs = self._module(*inputs)
        except Exception as error:  # the program is data: whatever it raises is its failure, not ours
            raise ProgramFailed(f"raised while scoring: {_first_line(error)}") from None
        if not isinstance(outputs, dict):
            raise ProgramFailed("does not give named outputs")
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def set_threads(count: int) -> None:
    """Threads of torch's matrix products, for the whole process."""
    torch.set_num_threads(count)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
