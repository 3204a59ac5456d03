"""Pictures that count as converged: a solver with so many steps that more change nothing.

Pictures of a model and a noise are those of one curve, to which every solver comes nearer with
more steps. Distance to it counts what a solver leaves out and what a cache leaves out alike,
where distance to the same solver without a cache counts the second alone.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import OptionError, ScheduleError
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
        if isinstance(self.scheduler, type) or not (
            self.scheduler is None or hasattr(self.scheduler, "set_timesteps")
        ):
            raise ScheduleError(
                f"a teacher with scheduler={self.scheduler!r}: expected a scheduler of "
                "diffusers, such as DPMSolverMultistepScheduler.from_config(pipe.scheduler."
                "config), or None"
            )

    def __str__(self) -> str:
        """As tables name it."""
        own = self.scheduler
        solver = "DPM-Solver++ (2M)" if own is None else type(own).__name__
        return f"{solver}, {self.num_steps} steps"

    def scheduler_for(self, pipeline: Any) -> Any:
        """The scheduler that a pipeline runs with, a new one.

        Raises:
            OptionError: The pipeline's scheduler does not say what its model was trained for,
                or the pipeline cannot run with the teacher's.
        """
        if self.scheduler is not None:
            own = copy.deepcopy(self.scheduler)
            refuse_scaled(own, pipeline)
            return own
        levels = NoiseLevels.of(pipeline.scheduler)
        return MultistepScheduler.of(levels, levels.even_ratios(self.num_steps))

    def pictures(self, job: PipelineJob) -> torch.Tensor:
        """What the untransformed model makes of a job: float32 ``[pictures, ...]``."""
        return run_with(job, self.scheduler_for(job.pipeline), self.num_steps)


def refuse_scaled(scheduler: Any, pipeline: Any) -> None:
    """Raise for a scheduler that scales samples, in a pipeline that takes them as they are.

    DiTPipeline does not multiply its noise by ``init_noise_sigma``, and hands on the input of
    the denoiser in the place of the sample: pictures would be noise, without a word.

    Raises:
        OptionError: It is one.
    """
    scales = not math.isclose(float(getattr(scheduler, "init_noise_sigma", 1.0)), 1.0)
    if scales and "init_noise_sigma" not in inspect.getsource(type(pipeline)):
        raise OptionError(
            f"{type(pipeline).__name__} does not scale samples as {type(scheduler).__name__} "
            "expects it (init_noise_sigma). Take one whose samples have variance 1, such as "
            "DDIMScheduler or DPMSolverMultistepScheduler"
        )


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
