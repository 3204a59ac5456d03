"""What figures are made from: each part is made when a figure asks for it, and once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dqar_fx
from benchmarks.ablation.protocol import use_scheduler
from benchmarks.figures.options import Options
from benchmarks.gates.calibrated import obtain_calibration
from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import Task, load_pipeline, model_name, name_classes
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
    def labels(self) -> tuple[int, ...]:
        """Classes of the pictures.

        Raises:
            InputError: The pipeline does not have one.
        """
        known = sorted(name_classes(self.pipe))
        asked = self.options.labels or tuple(known[: self.options.samples])
        unknown = [label for label in asked if label not in known]
        if unknown:
            raise InputError(
                f"--labels {' '.join(map(str, unknown))}: the pipeline has {len(known)} "
                f"classes, {known[0]} to {known[-1]}"
            )
        return asked

    @cached_property
    def task(self) -> Task:
        """One picture for each label."""
        names = name_classes(self.pipe)
        seeds = tuple(self.options.seed + i for i in range(len(self.labels)))
        return Task(seeds, self.labels, tuple(names[n] for n in self.labels), GUIDANCE)

    @cached_property
    def denoiser(self) -> Denoiser:
        """The eager denoiser of one picture, with guidance; its schedule does not matter."""
        model = self.pipe.transformer
        one = Task(self.task.seeds[:1], self.labels[:1], self.task.names[:1], GUIDANCE)
        schedule = Schedule.interval(self.options.steps, every=2)
        return dqar_fx.transform(model, schedule, example_inputs=one.example_call(model))

    @cached_property
    def calibration(self) -> Calibration:
        """What kept outputs, and kept keys and values, do to this pipeline.

        Raises:
            InputError: The folder that the options name has no such calibration.
        """
        options = self.options
        return obtain_calibration(
            self.pipe,
            self.labels,
            given=options.calibration,
            out=options.out,
            steps=options.steps,
            guidance=self.task.guidance,
            seed=options.seed,
            compare_kv=True,
        )
