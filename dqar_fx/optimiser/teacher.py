"""Pictures that count as converged: a solver with so many steps that more change nothing.

Pictures of a model and a noise are those of one curve, to which every solver comes nearer with
more steps. Distance to it counts what a solver leaves out and what a cache leaves out alike,
where distance to the same solver without a cache counts the second alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import ScheduleError
from dqar_fx.solver.multistep_scheduler import MultistepScheduler
from dqar_fx.solver.noise_levels import NoiseLevels

if TYPE_CHECKING:
    import torch

    from .trials import PipelineJob

TEACHER_STEPS = 150


@dataclass(frozen=True)
class Teacher:
    """A solver whose pictures others shall come near to.

    Attributes:
        num_steps: Its steps.
        scheduler: A scheduler of diffusers; None for DPM-Solver++ (2M) at timesteps that lie
            evenly in the log ratio of signal and noise, without rounding.
    """

    num_steps: int = TEACHER_STEPS
    scheduler: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 2:
            raise ScheduleError(
                f"a teacher with num_steps={self.num_steps!r}: expected a whole number above "
                f"1, such as {TEACHER_STEPS}"
            )

    def __str__(self) -> str:
        """As tables name it."""
        own = self.scheduler
        solver = "DPM-Solver++ (2M)" if own is None else type(own).__name__
        return f"{solver}, {self.num_steps} steps"

    def scheduler_for(self, pipeline: Any) -> Any:
        """The scheduler that a pipeline runs with, a new one.

        Raises:
            OptionError: The pipeline's scheduler does not say what its model was trained for.
        """
        if self.scheduler is not None:
            return copy.deepcopy(self.scheduler)
        levels = NoiseLevels.of(pipeline.scheduler)
        return MultistepScheduler.of(levels, levels.even_ratios(self.num_steps))

    def pictures(self, job: PipelineJob) -> torch.Tensor:
        """What the untransformed model makes of a job: float32 ``[pictures, ...]``."""
        return run_with(job, self.scheduler_for(job.pipeline), self.num_steps)


def run_with(
    job: PipelineJob, scheduler: Any, num_steps: int, transformer: Any = None
) -> torch.Tensor:
    """The pictures of a job with another scheduler: float32 ``[pictures, ...]``.

    Args:
        job: What is generated.
        scheduler: A scheduler of diffusers.
        num_steps: Its steps.
        transformer: The denoiser; the pipeline's own by default.
    """
    model = job.pipeline.transformer if transformer is None else transformer
    return replace(job, num_steps=num_steps).run(model, scheduler)
