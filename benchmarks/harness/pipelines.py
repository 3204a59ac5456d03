"""The pipeline under measurement, and the pictures that every contender generates with it."""

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from diffusers import DiTPipeline
from diffusers.utils import logging

from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import choose_device
from benchmarks.harness.options import Command, convert_with, default_is, device_of, one_of
from benchmarks.reference import PIPELINE

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class PipelineOptions(Command):
    """Options of which pipeline is run, and where."""

    model: Annotated[str, default_is("the reference pipeline")] = str(PIPELINE)
    """DiT pipeline folder or hub name."""
    device: Annotated[
        torch.device | None,
        convert_with(device_of, "DEVICE"),
        default_is("the fastest there is"),
    ] = None
    """Where it runs: cpu, cuda, mps, ..."""
    dtype: Annotated[str, one_of(tuple(DTYPES))] = "float32"
    """Dtype of the parameters."""

    def settle(self) -> Self:
        """The same on a device."""
        return replace(super().settle(), device=self.device or choose_device())


@dataclass(frozen=True)
class Task:
    """The pictures: one per seed, in one batch, so that the same seed is the same picture.

    Attributes:
        seeds: One per picture.
        labels: Class of each picture.
        names: Name of each class.
        guidance: Guidance scale.
    """

    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    guidance: float

    @classmethod
    def of(cls, pipe: Any, num_seeds: int, guidance: float) -> "Task":
        """Seeds from 0 on, with the classes of the pipeline in turn."""
        names = name_classes(pipe)
        known = sorted(names)
        labels = tuple(known[seed % len(known)] for seed in range(num_seeds))
        return cls(
            tuple(range(num_seeds)), labels, tuple(names[label] for label in labels), guidance
        )

    @property
    def batch(self) -> int:
        """Samples in one call of the denoiser: guidance doubles them."""
        return len(self.seeds) * (2 if self.guidance > 1 else 1)

    def generate(self, pipe: Any, num_steps: int) -> torch.Tensor:
        """Pictures ``[seeds, channels, height, width]`` in [0, 1], float32 on the CPU.

        The generators are the CPU's on every device, one per picture: the noise depends
        neither on the device nor on the other pictures.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        with drawing_from(pipe.scheduler, generators * (self.batch // len(self.seeds))):
            output = pipe(
                list(self.labels),
                generator=generators,
                num_inference_steps=num_steps,
                guidance_scale=self.guidance,
                output_type="pt",
            )
        images: torch.Tensor = output.images
        return images.float().cpu()

    def example_call(self, transformer: Any) -> dict[str, torch.Tensor]:
        """Keyword arguments of one call of the denoiser, as the pipeline passes them."""
        config = transformer.config
        size = (self.batch, config.in_channels, config.sample_size, config.sample_size)
        return {
            "hidden_states": torch.zeros(size, dtype=transformer.dtype),
            "timestep": torch.zeros(self.batch, dtype=torch.long),
            "class_labels": torch.zeros(self.batch, dtype=torch.long),
        }


@contextmanager
def drawing_from(scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:
    """Let the noise of a scheduler's steps come from generators, one per sample, while inside.

    DiTPipeline gives its generators to the first latent alone: DDPM's steps would draw from
    the process's generator, and equal seeds would give other pictures each time.
    """
    if "generator" not in inspect.signature(scheduler.step).parameters:
        yield
        return
    scheduler.step = partial(scheduler.step, generator=generators)
    try:
        yield
    finally:
        del scheduler.step


def name_classes(pipe: Any) -> dict[int, str]:
    """The first name of each class; numbers where the pipeline has no names."""
    names: dict[int, str] = {}
    for name, label in pipe.labels.items():
        names.setdefault(label, name)
    num_classes = pipe.transformer.config.num_embeds_ada_norm
    return names or {label: f"class {label}" for label in range(num_classes)}


def load_pipeline(options: PipelineOptions) -> Any:
    """The pipeline that the options name, on its device.

    Raises:
        InputError: It is not there, not a DiT pipeline, or cannot be loaded.
    """
    check_model(options.model)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        pipe: Any = DiTPipeline.from_pretrained(options.model)  # type: ignore[no-untyped-call]
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"cannot load --model {options.model}: {type(error).__name__}: {reason}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(options.device, DTYPES[options.dtype])


def check_model(model: str) -> None:
    """Raise unless this is the folder of a DiT pipeline, or could be a name on the hub.

    Raises:
        InputError: It is neither.
    """
    index = Path(model) / "model_index.json"
    if not index.is_file():
        if not Path(model).exists() and HUB_NAME.fullmatch(model):
            return
        raise InputError(
            f"--model {model} is no pipeline: expected a folder with a model_index.json, or a "
            "name on the hub such as facebook/DiT-XL-2-256"
        )
    try:
        found = json.loads(index.read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"--model {model}: model_index.json cannot be read: {error}"
        ) from None
    if found != DiTPipeline.__name__:
        raise InputError(f"--model {model} is a {found}; expected a DiTPipeline")


def model_name(model: str) -> str:
    """A hub name as it is, a folder by its last two parts: no path of this machine."""
    return "/".join(Path(model).resolve().parts[-2:]) if Path(model).exists() else model
