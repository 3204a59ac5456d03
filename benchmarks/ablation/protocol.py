"""What the report fixes: classes, seeds, scheduler; and the pictures that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import DDPMScheduler

from benchmarks.ablation.options import Options
from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import Task, name_classes

REPORT_CLASSES = (207, 360, 387, 974, 88, 417, 279, 928)
SEED = 42
GROUP_STRIDE = 100_000
"""Distance of the first seeds of two groups: more than a group has pictures."""


@dataclass(frozen=True)
class Protocol:
    """Which pictures are generated; the same for every configuration.

    Picture i of group g has the seed ``42 + 100_000 g + i`` and the i-th class, in turn.

    Attributes:
        names: Name of each class of the pipeline.
        classes: Those that take part.
        guidance: Guidance scale.
    """

    names: dict[int, str]
    classes: tuple[int, ...]
    guidance: float

    @classmethod
    def of(cls, pipe: Any, options: Options) -> "Protocol":
        """The protocol for a pipeline.

        Raises:
            InputError: The pipeline does not have a class that was asked for.
        """
        names = name_classes(pipe)
        return cls(names, choose_classes(names, options.classes), options.guidance)

    def task(self, group: int, start: int, count: int) -> Task:
        """Pictures of a group: ``count`` of them, from number ``start`` on."""
        numbers = range(start, start + count)
        labels = tuple(self.classes[n % len(self.classes)] for n in numbers)
        return Task(
            seeds=tuple(SEED + GROUP_STRIDE * group + n for n in numbers),
            labels=labels,
            names=tuple(self.names[label] for label in labels),
            guidance=self.guidance,
        )

    def batches(self, group: int, size: int, batch: int) -> Iterator[tuple[Task, int]]:
        """The pictures of a group in batches, and how many of each belong to the group.

        The last batch is as large as the others, or it would be compiled apart.
        """
        for start in range(0, size, batch):
            yield self.task(group, start, batch), min(batch, size - start)


def choose_classes(names: dict[int, str], asked: Sequence[int] | None) -> tuple[int, ...]:
    """Those asked for, else the report's, else all of a pipeline that lacks one of these.

    Raises:
        InputError: A class that was asked for is unknown.
    """
    if asked is None:
        has_all = all(label in names for label in REPORT_CLASSES)
        return REPORT_CLASSES if has_all else tuple(sorted(names))
    unknown = [label for label in asked if label not in names]
    if unknown:
        raise InputError(
            f"--classes {' '.join(map(str, unknown))}: the pipeline has {len(names)} classes, "
            f"{min(names)} to {max(names)}"
        )
    return tuple(asked)


def use_scheduler(pipe: Any, scheduler: str) -> None:
    """Give the pipeline the scheduler that an option names."""
    if scheduler == "ddpm":
        config = pipe.scheduler.config
        pipe.scheduler = DDPMScheduler.from_config(config)  # type: ignore[no-untyped-call]
