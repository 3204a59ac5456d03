"""What a search found, which sets a pipeline up and can be written to a folder."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tabulate import tabulate

from dqar_fx.errors import ScheduleError
from dqar_fx.pipeline.enable import enable

from .front import Front

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dqar_fx.guidance.guidance import Guidance
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.solver.multistep_scheduler import MultistepScheduler

    from .front import Point
    from .measurements import Measurements

Pipe = TypeVar("Pipe")


@dataclass(frozen=True)
class Optimum:
    """What `optimise` found.

    Attributes:
        point: The best table within the budget.
        front: All tables that no other beats.
        measured: The measurements that the search went by; None for a search with a teacher,
            and for one that was read from a folder.
        teacher: Whose pictures were the aim; None for those of the untransformed model.
        ablation: What the parts are worth by themselves: PSNR to the teacher's pictures in
            decibels, on held-out seeds; empty without a teacher.
    """

    point: Point
    front: Front
    measured: Measurements | None = None
    teacher: str | None = None
    ablation: Mapping[str, float] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """The schedule for ``transform``, which brings its sites with it."""
        return self.point.schedule

    @property
    def guidance(self) -> Guidance | None:
        """The guidance for ``transform``."""
        return self.point.guidance

    @property
    def scheduler(self) -> MultistepScheduler | None:
        """The solver; None where the pipeline's own stands."""
        return self.point.scheduler

    @property
    def num_steps(self) -> int:
        """Steps of the pipeline (``num_inference_steps``)."""
        return self.table.num_steps

    @property
    def table(self) -> BranchTable:
        """The branch table, whose ``why(step, site)`` explains each cell."""
        return self.front.table(self.point)

    def enable(self, pipeline: Pipe, **options: Any) -> Pipe:
        """Set a pipeline up: its scheduler, and a denoiser with the table.

        Run it with ``num_inference_steps`` as `num_steps` says. ``dqar_fx.disable`` gives the
        model back, but not the scheduler.

        Args:
            pipeline: A pipeline of the model that was searched.
            **options: As for `dqar_fx.transform`, such as ``compile``.

        Returns:
            The pipeline itself.

        Raises:
            DqarError: As for `dqar_fx.enable`.
            ScheduleError: The model is another one.
        """
        before = getattr(pipeline, "scheduler", None)
        if self.scheduler is not None:
            pipeline.scheduler = copy.deepcopy(self.scheduler)  # type: ignore[attr-defined]  # every pipeline has one
        if self.guidance is not None:
            options = {"guidance": self.guidance, **options}
        try:
            return enable(pipeline, self.schedule, **options)
        except Exception:
            pipeline.scheduler = before  # type: ignore[attr-defined]
            raise

    def __str__(self) -> str:
        """The front, and what each part is worth."""
        lines = [str(self.front)]
        if self.ablation:
            rows = [(name, f"{decibels:.1f}") for name, decibels in self.ablation.items()]
            headers = ("part", f"dB to {self.teacher}")
            lines.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
        return "\n\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads: the front, see `Front.save`, and ``optimum.json``."""
        self.front.save(folder)
        facts = {
            "point": self.front.points.index(self.point),
            "teacher": self.teacher,
            "ablation": dict(self.ablation),
        }
        (Path(folder) / "optimum.json").write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Optimum:
        """Read what `save` wrote.

        Raises:
            ScheduleError: The files are missing or damaged, or hold something else.
        """
        front = Front.load(folder)
        try:
            facts = json.loads((Path(folder) / "optimum.json").read_text())
            point = front.points[facts["point"]]
            return cls(point, front, None, facts["teacher"], facts["ablation"])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ScheduleError(
                f"no optimum can be read from {folder}: {type(error).__name__}: {error}. "
                "Expected optimum.json beside a front, as save(folder) writes them"
            ) from error
