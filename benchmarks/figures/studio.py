"""What figures are made from: each part is made when a figure asks for it, and once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dqar_fx
from benchmarks.ablation.protocol import use_scheduler
from benchmarks.figures.options import Options
from benchmarks.gates.calibrated import obtain_calibration
from benchmarks.harness.pipelines import Task, load_pipeline, model_name
from dqar_fx import Calibration, Denoiser, Schedule

GUIDANCE = 1.5


@dataclass(frozen=True)
class Studio:
    """Makes what figures show.

    Attributes:
        options: Of the command.
    """

    options: Options

    @property
    def model_name(self) -> str:
        """What the pictures call the pipeline."""
        return model_name(self.options.model)

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, with its untransformed model.

        Raises:
            InputError: It cannot be loaded.
        """
        pipe = load_pipeline(self.options)
        use_scheduler(pipe, self.options.scheduler)
        return pipe

    @cached_property
    def task(self) -> Task:
        """One picture for each class.

        Raises:
            InputError: The pipeline does not have one.
        """
        return self.options.make_task(self.pipe, self.options.seed, GUIDANCE)

    @cached_property
    def denoiser(self) -> Denoiser:
        """The eager denoiser of one picture, with guidance; its schedule does not matter."""
        model, task = self.pipe.transformer, self.task
        one = Task(task.seeds[:1], task.labels[:1], task.names[:1], GUIDANCE)
        schedule = Schedule.interval(self.options.steps, every=2)
        return dqar_fx.transform(model, schedule, example_inputs=one.example_call(model))

    @cached_property
    def calibration(self) -> Calibration:
        """What kept outputs, and kept keys and values, do to this pipeline.

        Raises:
            InputError: The folder that the options name has no such calibration.
        """
        return obtain_calibration(self.pipe, self.task, self.options, compare_kv=True)
