"""What exact partial evaluation alone gives: computing everything, transformed, against not.

No output is reused and none is approximated: conditioning is evaluated for all steps of a
trajectory at once, equal parameters and expressions are merged, and what nothing reads is not
computed. The compiled untransformed model and the compiled transformed one run their
trajectories in lockstep, in one process, each step with the same fresh latent; a trajectory's
time is the sum of its calls, so that what is done ahead is in it. Beside the ratio stand the
multiply-accumulates and the bytes that a step no longer takes, by count: of each kernel what
it reads and writes, as if neither had a cache.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import describe_machine, set_up_compiler
from benchmarks.harness.options import (
    Count,
    CpuOptions,
    at_least,
    default_is,
    one_of,
    run_command,
)
from benchmarks.harness.pipelines import PipelineOptions, load_pipeline
from benchmarks.harness.rows import append_rows
from benchmarks.harness.timing import find_quartiles, run_lockstep, take_ratios
from benchmarks.reference import PIPELINE
from dqar_fx.costs.kernels import Modules, find_kernels

CPU = torch.device("cpu")
GEOMETRIES = {
    "DiT-S/2": Geometry(),
    "DiT-XL/2": Geometry(layers=28, width=1152, heads=16),
    "tiny": Geometry(layers=2, width=16, heads=2, tokens=16),
}
"""Of models with random weights; ``tiny`` shows that the command works."""


@dataclass(frozen=True)
class Subject:
    """A model, and inputs for it.

    Attributes:
        name: Of the geometry, or of the pipeline.
        model: Class-conditional, in evaluation mode.
        batch: Samples per call.
        prompt: Class of the first sample.
    """

    name: str
    model: nn.Module
    batch: int
    prompt: int = 0

    @property
    def _config(self) -> Any:
        return self.model.config

    def draw_latent(self) -> torch.Tensor:
        """A latent of noise."""
        size = self._config.sample_size
        return torch.randn(self.batch, self._config.in_channels, size, size)

    def labels(self) -> torch.Tensor:
        """A class for each sample."""
        return (torch.arange(self.batch) + self.prompt) % self._config.num_embeds_ada_norm

    def example_call(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of one call."""
        return {
            "hidden_states": self.draw_latent(),
            "timestep": torch.full((self.batch,), 999),
            "class_labels": self.labels(),
        }


@dataclass(frozen=True)
class Counts:
    """Of one step on average, by count.

    Attributes:
        macs: Multiply-accumulates.
        nbytes: Bytes that kernels read and write.
    """

    macs: int
    nbytes: int


@dataclass(frozen=True)
class Lossless:
    """What one subject gave.

    Attributes:
        name: Of the subject.
        batch: Samples per call.
        steps: Of a trajectory.
        base_s: Per trajectory, time of the compiled untransformed model.
        own_s: Per trajectory, time of the compiled transformed one.
        error: Largest difference of a step from the eager original's largest output.
        base: What an untransformed step takes.
        own: What a transformed one takes.
        parameter_bytes: Of the original.
        merged_bytes: Of these, what equal tensors took.
    """

    name: str
    batch: int
    steps: int
    base_s: tuple[float, ...]
    own_s: tuple[float, ...]
    error: float
    base: Counts
    own: Counts
    parameter_bytes: int
    merged_bytes: int

    @property
    def speeds(self) -> list[float]:
        """Per trajectory, time of the untransformed model by that of the transformed one."""
        return take_ratios(self.base_s, self.own_s)

    def __str__(self) -> str:
        speed = find_quartiles(self.speeds)
        base_ms, own_ms = (
            1e3 * statistics.median(times) / self.steps for times in (self.base_s, self.own_s)
        )
        macs, nbytes = self.base.macs - self.own.macs, self.base.nbytes - self.own.nbytes
        verdict = "not slower" if speed.median >= 1 else "slower"
        return "\n".join(
            (
                f"{self.name}, batch {self.batch}, {self.steps} steps, "
                f"{len(self.speeds)} trajectories in lockstep",
                f"untransformed compiled {base_ms:9.3f} ms per step, median",
                f"computing all          {own_ms:9.3f} ms, what is done ahead included",
                f"speed                  {speed.median:9.3f} (quartiles {speed.low:.3f} to "
                f"{speed.high:.3f}): {verdict}",
                f"removed per step       {macs / 1e6:9.3f} of {self.base.macs / 1e6:.3f} "
                f"MMACs, {nbytes / 1e6:.3f} of {self.base.nbytes / 1e6:.3f} MB",
                f"equal parameters       {self.merged_bytes / 1e6:9.3f} of "
                f"{self.parameter_bytes / 1e6:.3f} MB merged",
                f"largest error          {self.error:9.1e} of the largest output",
            )
        )


def find_subject(name: str, model: str, batch: int) -> Subject:
    """The subject of a name.

    Raises:
        InputError: The pipeline is not there.
    """
    if name in GEOMETRIES:
        return Subject(name, GEOMETRIES[name].build(), batch)
    transformer = load_pipeline(PipelineOptions(model, CPU)).transformer
    return Subject(name, transformer.eval().requires_grad_(False), batch)


def count(denoiser: dqar_fx.Denoiser) -> tuple[Counts, Counts]:
    """What a step takes on average, untransformed and transformed, by count."""
    report = denoiser.report(device="A100")  # times of that device are not looked at
    captured = denoiser.program.captured.gm
    kernels = find_kernels(captured.graph, Modules.of(captured), fused=True)
    nbytes = sum(kernel.nbytes * times for kernel, times in kernels.items())
    steps = report.num_steps
    own = Counts(report.macs // steps, report.cost.nbytes // steps)
    return Counts(report.untransformed_macs // steps, nbytes), own


def measure_error(subject: Subject, transformed: Callable[..., Any]) -> float:
    """Largest difference of a step from the original's, relative to its largest output."""
    call = subject.example_call()
    expected = subject.model(**call).sample
    difference = transformed(**call).sample - expected
    return float(difference.abs().max() / expected.abs().max())


def measure(subject: Subject, steps: int, repeats: int, unit: str) -> Lossless:
    """Run both models in lockstep."""
    schedule = dqar_fx.Schedule.compute_all(steps)
    own = dqar_fx.transform(
        subject.model, schedule, compile=unit, example_inputs=subject.example_call()
    )
    base_counts, own_counts = count(own)
    counted = own.parameter_bytes
    print("compiling ...", file=sys.stderr)
    set_up_compiler(CPU)
    models = [torch.compile(subject.model, fullgraph=True), own]
    run_lockstep(models, subject, steps)  # compiles
    numbers = tqdm(range(repeats), desc="trajectories", leave=False)
    times = [run_lockstep(models, subject, steps) for _ in numbers]
    base_s, own_s = zip(*times, strict=True)
    own.reset()
    return Lossless(
        name=subject.name,
        batch=subject.batch,
        steps=steps,
        base_s=base_s,
        own_s=own_s,
        error=measure_error(subject, own),
        base=base_counts,
        own=own_counts,
        parameter_bytes=counted.total + counted.merged,
        merged_bytes=counted.merged,
    )


@dataclass(frozen=True)
class Options(CpuOptions):
    """Options of this command."""

    COMMAND = "benchmarks.lossless"
    WHY_COMPILER = "this compares compiled models"

    geometry: Annotated[str, one_of(("reference", *GEOMETRIES))] = "reference"
    """What is run."""
    model: Annotated[str, default_is("the reference pipeline")] = str(PIPELINE)
    """DiT pipeline that 'reference' stands for."""
    batch: Count = 2
    """Samples per call."""
    steps: Annotated[int, at_least(2)] = 50
    """Of a trajectory."""
    repeats: Count = 15
    """Timed trajectories."""
    unit: Literal["regional", "whole"] = "regional"
    """What is compiled of the transformed model."""
    out: Path = Path("results/lossless")
    """Folder to write to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


@torch.no_grad()
def run(options: Options) -> None:
    """Measure, print and add a row."""
    subject = find_subject(options.geometry, options.model, options.batch)
    found = measure(subject, options.steps, options.repeats, options.unit)
    machine, path = describe_machine(CPU), options.out / "rows.jsonl"
    print(found, machine, sep="\n")
    append_rows([found], path, {"unit": options.unit}, machine, also=("speeds",))
    print(f"added a row to {path}")


if __name__ == "__main__":
    sys.exit(main())
