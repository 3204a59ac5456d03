"""Forecasts and noise: what rounding is in what they read, and what becomes of it.

A forecast weighs kept outputs by numbers that alternate in sign, and amplifies their noise by
the root of the sum of squares of these. Noise is the rounding of a storage format, or that of
a denoiser whose linears round (torchao's int8 weights and dynamic activations, "W8A8"), of
whose outputs all differ from those of the model in full precision for the same inputs.

Two files are written. In ``noise.jsonl`` there is a row for each source of noise, order and
age: the sites of the untransformed model are watched at every step, and forecasts made of
them as if steps had been kept ``age + 1`` apart. In ``pictures.jsonl`` there is one for each
source, interval and order: whole runs, with and without damping.

Examples::

    python -m benchmarks.noise                                   # the reference pipeline
    python -m benchmarks.noise --solver DDIM --steps 50 --every 2 3 4
    python -m benchmarks.noise --quick --out results/quick       # does it run at all?
"""

import copy
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

import dqar_fx
from benchmarks import solvers
from benchmarks.ablation.protocol import SEED
from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import at_least, one_of, quick_flag, run_command, several
from benchmarks.harness.pipelines import load_pipeline
from benchmarks.harness.rows import SHARED, write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.solvers import make_job, make_solver
from dqar_fx import Schedule, Teacher
from dqar_fx.calibration.observe import (
    ObservedDenoiser,
    ObservedStep,
    SiteObserver,
    SiteValues,
)
from dqar_fx.capture.capture import Capture, capture
from dqar_fx.optimiser.teacher import run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr
from dqar_fx.passes import FORMATS, TensorSpec
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.schedule.forecast import MAX_ORDER, TRAVEL, amplify, weigh

QUICK = {"steps": 9, "pictures": 2, "watched": 2, "every": (2,), "ages": (1,), "teacher": 12}
EXACT, ROUNDED = "fp32", "W8A8"
SOURCES = (EXACT, "bf16", "fp16", "fp8", "int8", ROUNDED)
"""Where noise comes from: nowhere, formats of the cache, and the denoiser itself."""
STRENGTHS = (0.0, 1.0)
"""How much runs are damped, as shares of what their noise asks for."""

Sites = dict[str, torch.Tensor]
"""What each site gave, by its path."""


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        solver: Name and spacing.
        steps: Its steps.
        sites: What forecasts.
        guidance: Guidance scale.
    """

    solver: str
    steps: int
    sites: str
    guidance: float


@dataclass(frozen=True)
class NoiseRow:
    """One source, order and age. All but factors are relative to the size of a site's output.

    They are root mean squares over the sites and steps of a run.

    Attributes:
        source: Where the noise comes from.
        order: Of the forecast; 0 is reuse.
        age: Steps from what was kept last to the forecast.
        noise: What is in the outputs that forecasts read.
        factor: By how much the order amplifies it by its weights.
        amplified: By how much it did.
        change: What the forecast is to predict: how far the output moved.
        error: That of the forecast.
        error_without: That of the same forecast without noise.
        error_damped: With weights that are damped for the noise and the change per step.
        run: What all rows share.
    """

    source: str
    order: int
    age: int
    noise: float
    factor: float
    amplified: float | None
    change: float
    error: float
    error_without: float
    error_damped: float
    run: Setting | None = field(default=None, metadata=SHARED)


@dataclass(frozen=True)
class PictureRow:
    """One run.

    Attributes:
        source: Where the noise comes from.
        every: Distance between computed steps.
        order: Of forecasts.
        damping: How much they are damped.
        strength: The same as a share of what the noise asks for.
        psnr_db: To pictures of the same denoiser and solver without reuse, in decibels.
        converged_db: To the teacher's, of the denoiser in full precision.
        pictures: How many are compared.
        teacher: Whose pictures count as converged.
        run: What all rows share.
    """

    source: str
    every: int
    order: int
    damping: float
    strength: float
    psnr_db: float
    converged_db: float
    pictures: int
    teacher: str
    run: Setting | None = field(default=None, metadata=SHARED)


@dataclass(frozen=True)
class Options(solvers.FitOptions):
    """Options of this command."""

    COMMAND = "benchmarks.noise"
    QUICK = QUICK

    solver: Annotated[str, one_of(tuple(solvers.SOLVERS))] = "DPM-Solver++ 2M"
    """The solver of all runs."""
    spacing: Annotated[str, one_of(tuple(solvers.SPACINGS))] = "trailing"
    """Of its timesteps."""
    steps: Annotated[int, at_least(8)] = 20
    """Its steps."""
    sources: Annotated[tuple[str, ...], several(one_of(SOURCES))] = SOURCES
    """Where noise comes from."""
    ages: Annotated[tuple[int, ...], several(at_least(1))] = (1, 2, 3, 4, 5)
    """Steps from what was kept last to a forecast."""
    every: Annotated[tuple[int, ...], several(at_least(2))] = (2, 3)
    """Distances between computed steps, of whole runs."""
    sites: str = "attention"
    """What forecasts; torchao's linears hide feed-forwards."""
    watched: Annotated[int, at_least(1)] = 8
    """Pictures whose sites are watched."""
    out: Path = Path("results/noise")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False

    @property
    def shared(self) -> Setting:
        """What all rows share."""
        solver = f"{self.solver}, {self.spacing}"
        return Setting(solver, self.steps, self.sites, self.guidance)


# ---- denoisers -----------------------------------------------------------------------------


def round_linears(model: nn.Module) -> nn.Module:
    """A copy whose linears have int8 weights, and round what they are given to int8.

    Raises:
        InputError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise InputError(
            f"{ROUNDED} needs torchao ({error}): pip install torchao, or leave it out of "
            "--sources"
        ) from None
    rounded = copy.deepcopy(model)
    quantize_(rounded, Int8DynamicActivationInt8WeightConfig())
    return rounded


class SiteReader(SiteObserver):
    """Runs each step as the model does, and lets all that its sites give be seen."""

    def __init__(self, captured: Capture, options: Options) -> None:
        super().__init__(captured, options.sites, options.steps, max_age=1)
        outputs = list(graph_outputs(self._graph.graph))
        firsts = [match.kept[0] for match in self._matches]
        self._graph.graph.output_node().args = ((*outputs, *firsts),)
        self._graph.recompile()
        self.seen: list[tuple[Sequence[Any], Sites]] = []

    def look(self, step: ObservedStep) -> list[SiteValues]:
        """Write the inputs of a step down, and what sites give."""
        self.seen.append((step.leaves, self._by_path(step.exposed)))
        return [SiteValues(())] * len(self._matches)

    def read(self, leaves: Sequence[Any]) -> Sites:
        """What sites give for some inputs."""
        return self._by_path(self._graph(*leaves)[self._num_outputs :])

    def _by_path(self, values: Sequence[torch.Tensor]) -> Sites:
        pairs = zip(self._matches, values, strict=True)
        return {match.site.path: value.detach().clone() for match, value in pairs}


@torch.no_grad()
def watch(model: nn.Module, job: PipelineJob, scheduler: Any, options: Options) -> SiteReader:
    """Run a model once; what has seen all of its steps."""
    made: list[SiteReader] = []

    def build(fork: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SiteReader:
        made.append(SiteReader(capture(fork, args, kwargs), options))
        return made[-1]

    run_with(job, scheduler, options.steps, ObservedDenoiser(model, build))
    (reader,) = made
    return reader


# ---- what becomes of noise -----------------------------------------------------------------


def keep(value: torch.Tensor, cache: str) -> torch.Tensor:
    """What is read of a value that was kept in a format."""
    kind = FORMATS[cache]
    buffers = [spec.allocate() for spec in kind.specs(TensorSpec.of(value))]
    kind.write(value, buffers)
    return kind.read(buffers, value.dtype)


@dataclass(frozen=True)
class Watched:
    """What sites gave at each step of a run: as it is, and with noise.

    Attributes:
        right: Without noise.
        noisy: With it.
    """

    right: list[Sites]
    noisy: list[Sites]

    @cached_property
    def noise(self) -> float:
        """The noise, relative to what it is in: root mean square over steps and sites."""
        pairs = zip(self.right, self.noisy, strict=True)
        return mean_of(
            part(other[path] - own[path], own[path]) for own, other in pairs for path in own
        )

    def change(self, age: int) -> float:
        """How far an output moves in so many steps, relative to it."""
        pairs = zip(self.right, self.right[age:], strict=False)
        return mean_of(part(b[path] - a[path], b[path]) for a, b in pairs for path in b)

    def measure(self, source: str, order: int, age: int, run: Setting) -> NoiseRow | None:
        """All forecasts of an order and age; None where the run is too short for one."""
        every, steps = age + 1, range(len(self.right))
        forecasts = [
            (step, [step - age - place * every for place in range(order + 1)])
            for step in steps[order * every + age :]
        ]
        if not forecasts:
            return None
        step, kept = forecasts[0]
        damping = self.noise / self.change(1)
        weights = weigh("taylor", kept, step, order).tolist()
        damped = weigh("taylor", kept, step, order, damping).tolist()
        of = partial(self._error, forecasts)
        return NoiseRow(
            source,
            order,
            age,
            self.noise,
            amplify(weights),
            self._amplified(forecasts, weights) if self.noise else None,
            self.change(age),
            of(weights, self.noisy),
            of(weights, self.right),
            of(damped, self.noisy),
            run,
        )

    def _error(
        self, forecasts: list[tuple[int, list[int]]], weights: list[float], past: list[Sites]
    ) -> float:
        """That of forecasts of a past, relative to what they forecast."""
        return mean_of(
            part(add_up(past, kept, path, weights) - right, right)
            for step, kept in forecasts
            for path, right in self.right[step].items()
        )

    def _amplified(
        self, forecasts: list[tuple[int, list[int]]], weights: list[float]
    ) -> float:
        """The noise of forecasts by the root mean square of that which they read."""
        both = list(zip(self.right, self.noisy, strict=True))
        noise = [{path: b[path] - a[path] for path in a} for a, b in both]
        squares = [
            (add_up(noise, kept, path, weights).square().mean(), noise[each][path])
            for _, kept in forecasts
            for path in noise[0]
            for each in kept
        ]
        read = sum(value.square().mean().item() for _, value in squares)
        return math.sqrt(sum(square.item() for square, _ in squares) / read)


def add_up(
    past: list[Sites], kept: list[int], path: str, weights: list[float]
) -> torch.Tensor:
    """The forecast of a site."""
    parts = [weight * past[step][path] for step, weight in zip(kept, weights, strict=True)]
    return torch.stack(parts).sum(0)


def part(value: torch.Tensor, whole: torch.Tensor) -> float:
    """Mean square by mean square."""
    return (value.square().mean() / whole.square().mean()).item()


def mean_of(squares: Iterator[float]) -> float:
    """The root of a mean of squares."""
    found = list(squares)
    return math.sqrt(sum(found) / len(found))


def watch_sources(pipe: Any, options: Options) -> Iterator[tuple[str, Watched]]:
    """Each source, and what sites of the same run gave with its noise."""
    job = make_job(pipe, options, SEED, options.watched)
    scheduler = make_solver(pipe, options.solver, options.spacing)
    reader = watch(pipe.transformer, job, scheduler, options)
    right = [sites for _, sites in reader.seen]
    for source in options.sources:
        if source == EXACT:
            yield source, Watched(right, right)
        elif source == ROUNDED:
            rounded = round_linears(pipe.transformer)
            other = watch(
                rounded, job, make_solver(pipe, options.solver, options.spacing), options
            )
            with torch.no_grad():
                noisy = [other.read(leaves) for leaves, _ in reader.seen]
            yield source, Watched(right, noisy)
        else:
            noisy = [{p: keep(value, source) for p, value in each.items()} for each in right]
            yield source, Watched(right, noisy)


# ---- pictures ------------------------------------------------------------------------------


def compare(pipe: Any, options: Options, noise: dict[str, float]) -> Iterator[PictureRow]:
    """Whole runs: every source, interval, order and strength of damping."""
    job = make_job(pipe, options, SEED, options.pictures)
    teacher = Teacher(options.teacher)
    converged = teacher.pictures(job)

    def generate(model: nn.Module | None) -> torch.Tensor:
        scheduler = make_solver(pipe, options.solver, options.spacing)
        return run_with(job, scheduler, options.steps, model)

    for source in options.sources:
        is_rounded = source == ROUNDED
        model = round_linears(pipe.transformer) if is_rounded else pipe.transformer
        cache = "same" if source in (EXACT, ROUNDED) else source
        right = generate(model)
        widest = Schedule.interval(options.steps, 2).forecast(MAX_ORDER)
        denoiser = dqar_fx.transform(model, widest, sites=options.sites, cache=cache)
        generate(denoiser)  # captures once for all
        for schedule, every, order, strength, damping in list_runs(options, noise[source]):
            images = generate(denoiser.with_schedule(schedule))
            yield PictureRow(
                source,
                every,
                order,
                damping,
                strength,
                psnr(right, images),
                psnr(converged, images),
                options.pictures,
                str(teacher),
                options.shared,
            )


def list_runs(
    options: Options, noise: float
) -> Iterator[tuple[Schedule, int, int, float, float]]:
    """Schedule, interval, order, strength and damping of each run of a source."""
    for every in options.every:
        plain = Schedule.interval(options.steps, every)
        yield plain, every, 0, 0.0, 0.0
        for order in range(1, MAX_ORDER + 1):
            for strength in STRENGTHS:
                damping = strength * noise * options.steps / TRAVEL
                if damping or not strength:
                    schedule = plain.forecast(order, damping=damping)
                    yield schedule, every, order, strength, damping


NOISE_COLUMNS = [
    Column("noise of", "source"),
    Column("order", "order"),
    Column("age", "age"),
    Column("noise", "noise", ".3%"),
    Column("factor", "factor", ".2f"),
    Column("measured", "amplified", ".2f"),
    Column("change", "change", ".1%"),
    Column("error", "error", ".2%"),
    Column("without noise", "error_without", ".2%"),
    Column("damped", "error_damped", ".2%"),
]
PICTURE_COLUMNS = [
    Column("noise of", "source"),
    Column("every", "every"),
    Column("order", "order"),
    Column("strength", "strength", "g"),
    Column("damping", "damping", ".3f"),
    Column("to no reuse, dB", "psnr_db", ".2f"),
    Column("to converged, dB", "converged_db", ".2f"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Watch, compare, print and write."""
    with warnings.catch_warnings(action="ignore"):  # schedulers of diffusers; what is measured
        measure(options)


def measure(options: Options) -> None:
    """The same, warnings and all."""
    pipe = load_pipeline(options)
    machine = describe_machine(options.device or torch.device("cpu"))
    rows, noise = [], {}
    for source, watched in watch_sources(pipe, options):
        noise[source] = watched.noise
        for order in range(MAX_ORDER + 1):
            found = (watched.measure(source, order, a, options.shared) for a in options.ages)
            rows += [row for row in found if row is not None]
    write_rows(rows, options.out / "noise.jsonl", machine)
    print(format_table(NOISE_COLUMNS, rows), end="\n\n")
    pictures = list(compare(pipe, options, noise))
    write_rows(pictures, options.out / "pictures.jsonl", machine)
    print(format_table(PICTURE_COLUMNS, pictures), machine, sep="\n\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
