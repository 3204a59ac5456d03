"""Where the pieces of a run lie on disk, and what tells them from those of another run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.ablation.protocol import GROUP_STRIDE, SEED
from benchmarks.harness.machine import count_cores, name_processor
from benchmarks.harness.pipelines import PipelineOptions, model_name
from benchmarks.harness.store import Piece, file_name, take_fingerprint
from benchmarks.pareto.contenders import Contender
from benchmarks.pareto.options import Options


@dataclass(frozen=True)
class Plan:
    """The pieces of a run.

    Attributes:
        options: Of the run.
        shared: Settings that all pieces follow from.
    """

    options: Options
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, options: Options) -> "Plan":
        """The plan for a pipeline."""
        shared = describe_place(
            pipe,
            options,
            lowering=options.lowering,
            steps=options.steps,
            guidance=options.guidance,
            samples=options.samples,
        )
        return cls(options, shared)

    def times(self, contender: Contender) -> Piece:
        """The piece of a contender's times and pictures."""
        path = self.options.out / "rows" / f"{file_name(contender.name)}.safetensors"
        return Piece(path, {**self.shared, **contender.identity})

    def list_judged(self, contenders: Iterable[Contender]) -> dict[str, list[Piece]]:
        """The pieces of the pictures that are judged, one for each seed group."""
        groups = range(self.options.seed_groups)
        return {
            each.name: [self._judged(each, group) for group in groups] for each in contenders
        }

    def _judged(self, contender: Contender, group: int) -> Piece:
        name = f"{file_name(contender.name)}-{group}.safetensors"
        size = self.options.images // self.options.seed_groups
        own = {"first_seed": SEED + GROUP_STRIDE * group, "pictures": size}
        identity = {**self.shared, **contender.identity, **own}
        return Piece(self.options.out / "images" / name, identity)


def describe_place(pipe: Any, source: PipelineOptions, **settings: Any) -> dict[str, Any]:
    """Where and with what a pipeline runs, beside settings of its own."""
    return {
        "model": model_name(source.model),
        "weights": take_fingerprint(pipe.transformer, pipe.vae),
        "device": source.device.type,
        "processor": name_processor(source.device),
        "cores": count_cores(),
        "threads": torch.get_num_threads(),
        "dtype": source.dtype,
        **settings,
        "scheduler_class": type(pipe.scheduler).__name__,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "cache_dit": find_version("cache-dit"),
    }


def find_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
