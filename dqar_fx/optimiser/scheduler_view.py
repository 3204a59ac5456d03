"""What a pipeline makes of a denoiser's output before its scheduler sees it, found by looking.

Guidance adds up the halves of a batch, and some pipelines drop channels. An error that both
halves share counts once there, one of their difference many times over; so errors are weighed
as the scheduler sees them:

    model_output[i] = sum_j A[i, j] outputs[j, :channels]

``A`` is solved for at the first step whose output is known; where that does not reproduce what
the scheduler was given (guidance in two calls, say), outputs are taken as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .site_products import flatten_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_RESIDUAL = 1e-4
"""Relative residual of the solution beyond which the scheduler is given something else."""


class SchedulerView:
    """Maps a denoiser's flat outputs to what the scheduler sees of them.

    Attributes:
        matrix: float64 ``[batch of the scheduler, batch of the denoiser]``; None as long as it
            is unknown, and where there is none.
        channels: How many entries of the outputs' second dimension are used.
    """

    def __init__(self) -> None:
        self.matrix: torch.Tensor | None = None
        self.channels = 0
        self._outputs: Sequence[torch.Tensor] = ()
        self._is_known = False

    def __call__(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map outputs to what the scheduler sees of them: float64, one dimension."""
        if self.matrix is None:
            return flatten_values(outputs).double()
        return (self.matrix @ rows_of(outputs[0], self.channels)).flatten()

    def note(self, outputs: Sequence[torch.Tensor]) -> None:
        """Remember what the denoiser has just given, until the matrix is known."""
        if not self._is_known:
            self._outputs = tuple(output.clone() for output in outputs)

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a scheduler's ``step``, so that its first argument is compared once."""

        def watched(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._is_known and self._outputs:
                self._solve(self._outputs, model_output)
                self._is_known, self._outputs = True, ()
            return step(model_output, *args, **kwargs)

        return watched

    def _solve(self, outputs: Sequence[torch.Tensor], seen: torch.Tensor) -> None:
        """Find the matrix that makes what the scheduler has seen of the outputs, if any."""
        output, channels = outputs[0], seen.shape[1] if seen.dim() > 1 else 0
        fits = output.dim() == seen.dim() > 1 and channels <= output.shape[1]
        if len(outputs) > 1 or not fits or output.shape[2:] != seen.shape[2:]:
            return
        rows, right = rows_of(output, channels), rows_of(seen, channels)
        matrix = torch.linalg.lstsq(rows.T, right.T).solution.T
        if (matrix @ rows - right).norm() <= MAX_RESIDUAL * right.norm():
            self.matrix, self.channels = matrix, channels


def rows_of(tensor: torch.Tensor, channels: int) -> torch.Tensor:
    """The first channels: float64 ``[batch, values]``, on a device that has float64."""
    device = "cpu" if tensor.device.type == "mps" else tensor.device
    return tensor[:, :channels].detach().to(device).double().flatten(1)
