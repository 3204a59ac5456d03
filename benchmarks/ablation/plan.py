"""Where the pieces of a run lie on disk, and what tells them from those of another run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.ablation.configurations import Entry
from benchmarks.ablation.options import Options
from benchmarks.ablation.protocol import GROUP_STRIDE, SEED, Protocol
from benchmarks.harness.machine import count_cores, name_processor
from benchmarks.harness.pipelines import Task, model_name
from benchmarks.harness.store import Piece, file_name, take_fingerprint


@dataclass(frozen=True)
class Plan:
    """The pieces of a run.

    Attributes:
        options: Of the run.
        protocol: Which pictures.
        shared: Settings that all pieces follow from.
    """

    options: Options
    protocol: Protocol
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, protocol: Protocol, options: Options) -> "Plan":
        """The plan for a pipeline, which has its scheduler already."""
        return cls(
            options,
            protocol,
            {
                "model": model_name(options.model),
                "weights": take_fingerprint(pipe.transformer, pipe.vae),
                "device": options.device.type,
                "dtype": options.dtype,
                "lowering": options.lowering,
                "steps": options.steps,
                "scheduler": options.scheduler,
                "scheduler_class": type(pipe.scheduler).__name__,
                "guidance": options.guidance,
                "classes": protocol.classes,
            },
        )

    @property
    def task(self) -> Task:
        """The pictures that are timed: the first ones of the first group."""
        return self.protocol.task(0, 0, self.options.samples)

    def group_task(self, group: int) -> Task:
        """All pictures of a group, one at least."""
        return self.protocol.task(group, 0, max(1, self.group_size))

    @property
    def group_size(self) -> int:
        """Pictures in a seed group."""
        return self.options.images // self.options.seed_groups

    @property
    def times(self) -> Piece:
        """The piece of the times."""
        options = self.options
        measured = {
            "samples": options.samples,
            "repeats": options.repeats,
            "processor": name_processor(options.device),
            "cores": count_cores(),
        }
        name = "times_more" if options.more else "times"
        return Piece(options.out / f"{name}.safetensors", {**self.shared, **measured})

    def list_pictures(self, entries: Sequence[Entry]) -> dict[str, list[Piece]]:
        """The pieces of the pictures: per configuration, one for each seed group."""
        if not self.options.images:
            return {}
        groups = range(self.options.seed_groups)
        return {
            entry.contender.name: [self._pictures(entry, group) for group in groups]
            for entry in entries
        }

    def _pictures(self, entry: Entry, group: int) -> Piece:
        contender = entry.contender
        own = {
            "configuration": contender.name,
            "trajectory": contender.steps,
            "schedule": repr(contender.schedule),
            "keep": contender.keep,
            "cache": contender.cache,
            "first_seed": SEED + GROUP_STRIDE * group,
            "pictures": self.group_size,
        }
        name = f"{file_name(contender.name)}-{group}.safetensors"
        path = self.options.out / "images" / name
        return Piece(path, {**self.shared, **own})


def share_of_keys_values(config: Any) -> float:
    """What reusing keys and values saves of what reusing outputs saves, on paper.

    Two projections of ``width^2`` per token, of four and two products of ``tokens width``:
    ``width / (2 width + tokens)``.
    """
    width = config.num_attention_heads * config.attention_head_dim
    tokens = (config.sample_size // config.patch_size) ** 2
    return float(width / (2 * width + tokens))
