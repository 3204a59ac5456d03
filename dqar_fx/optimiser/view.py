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

from .observe import flat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESIDUAL = 1e-4
"""Relative: a larger one means that the scheduler is given something else."""


class View:
    """Maps a denoiser's flat outputs to what the scheduler sees of them.

    Attributes:
        matrix: float64 ``[batch given, batch of the denoiser]``; None until it is known, or
            where there is none.
        channels: How many of the outputs' second dimension are used.
    """

    def __init__(self) -> None:
        self.matrix: torch.Tensor | None = None
        self.channels = 0
        self._outputs: Sequence[torch.Tensor] = ()
        self._is_known = False

    def __call__(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """float64, one line."""
        if self.matrix is None:
            return flat(outputs).double()
        return (self.matrix @ rows_of(outputs[0], self.channels)).flatten()

    def note(self, outputs: Sequence[torch.Tensor]) -> None:
        """What the denoiser has just given."""
        if not self._is_known:
            self._outputs = tuple(output.clone() for output in outputs)

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's ``step`` whose first argument is looked at."""

        def watched(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._is_known and self._outputs:
                self._look(self._outputs, model_output)
                self._is_known, self._outputs = True, ()
            return step(model_output, *args, **kwargs)

        return watched

    def _look(self, outputs: Sequence[torch.Tensor], given: torch.Tensor) -> None:
        output, channels = outputs[0], given.shape[1] if given.dim() > 1 else 0
        fits = output.dim() == given.dim() > 1 and channels <= output.shape[1]
        if len(outputs) > 1 or not fits or output.shape[2:] != given.shape[2:]:
            return
        rows, right = rows_of(output, channels), rows_of(given, channels)
        matrix = torch.linalg.lstsq(rows.T, right.T).solution.T
        if (matrix @ rows - right).norm() <= RESIDUAL * right.norm():
            self.matrix, self.channels = matrix, channels


def rows_of(tensor: torch.Tensor, channels: int) -> torch.Tensor:
    """float64 ``[batch, values]`` of some channels, where float64 exists."""
    device = "cpu" if tensor.device.type == "mps" else tensor.device
    return tensor[:, :channels].detach().to(device).double().flatten(1)
