"""Calibration: one call that runs a pipeline and measures what gates decide on."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dqar_fx.capture.capture import capture
from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.errors import DqarError, ScheduleError
from dqar_fx.program.compile_options import CompileOptions
from dqar_fx.schedule.noise import noise_as_set
from dqar_fx.schedule.schedule import check_at_least

from .calibration import Calibration, Cells
from .fingerprint import Fingerprint
from .probe import Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from dqar_fx.schedule.schedule import Schedule

    from .probe import Changes, Tensors

    Weighed = list[tuple[int, NDArray[np.float64]]]


def calibrate(
    pipeline: Any,
    inputs: Sequence[Any],
    *,
    num_steps: int = 50,
    max_age: int = 8,
    cells_per_step: int = 12,
    compare_kv: bool = False,
    sites: str | Sequence[str] = "attention",
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
    **call: Any,
) -> Calibration:
    """Run a pipeline once, and measure how its attention looks and changes.

    Takes about as long as the pipeline does in eager mode, times two plus
    ``cells_per_step`` (twice that with ``compare_kv``), and keeps the attention outputs of
    ``max_age`` steps.

    Args:
        pipeline: A diffusers pipeline with a ``transformer`` and a ``scheduler``; both are as
            before when this returns.
        inputs: Prompts, or class labels: its first argument.
        num_steps: Denoising steps (``num_inference_steps``).
        max_age: How many steps back outputs are compared.
        cells_per_step: Reuses that are tried at each step, of one site each, to see what they
            do to the denoiser's output; `Policy` learns from these.
        compare_kv: Whether to try kept keys and values as well.
        sites: As for ``transform``.
        batch_size: Inputs per run.
        seed: Of the noise, and of the choice of cells.
        progress: Whether to show a progress bar.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        What was measured; the mean over inputs and streams.

    Raises:
        CaptureError: The denoiser cannot be captured.
        ScheduleError: There are no inputs, or an argument is out of range.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_at_least(1, num_steps=num_steps, max_age=max_age, batch_size=batch_size)
    check_at_least(0, cells_per_step=cells_per_step)
    model = getattr(pipeline, "transformer", None)
    if not isinstance(model, torch.nn.Module) or isinstance(model, Denoiser):
        raise DqarError(
            "calibration needs a diffusers pipeline with its own transformer; found "
            f"{type(pipeline).__name__} with a transformer of type {type(model).__name__}"
        )
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise DqarError(
            "calibration needs the noise levels of a scheduler, but "
            f"{type(pipeline).__name__} has none"
        )
    given = list(inputs) if not isinstance(inputs, str) else [inputs]
    if not given:
        raise ScheduleError("calibration needs at least one prompt or label")
    batches = [given[i : i + batch_size] for i in range(0, len(given), batch_size)]
    calls = count_calls(scheduler, num_steps)
    total = calls * len(batches)
    with quiet(pipeline), tqdm(total=total, desc="calibrate", disable=not progress) as bar:
        notes = Notes(calls, max_age, cells_per_step, np.random.default_rng(seed), bar)
        builder = ProbeBuilder(notes, sites, compare_kv)
        probing = Denoiser(model, builder, CompileOptions.of(None))
        own = copy.deepcopy(scheduler)
        if hasattr(own, "step_index"):
            probing.attach_scheduler(own)
        with replaced(pipeline, transformer=probing, scheduler=own), seeded_apart():
            for number, batch in enumerate(batches):
                generator = torch.Generator().manual_seed(seed + number)
                torch.manual_seed(seed + number)  # of schedulers that are given no generator
                notes.weight = len(batch)
                pipeline(batch, num_inference_steps=num_steps, generator=generator, **call)
    return notes.finish(noise_as_set(own), model, len(given))


@contextmanager
def replaced(pipeline: Any, **parts: Any) -> Iterator[None]:
    """With other parts; the pipeline's own come back whatever happens."""
    before = {name: getattr(pipeline, name) for name in parts}
    for name, part in parts.items():
        setattr(pipeline, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(pipeline, name, part)


@contextmanager
def seeded_apart() -> Iterator[None]:
    """With random numbers that leave the process's own as they are, on all devices."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        yield


def count_calls(scheduler: Any, num_steps: int) -> int:
    """Steps of the branch table: some schedulers have several timesteps per step."""
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(num_steps)
    except (AttributeError, TypeError, ValueError):
        return num_steps  # it needs more than a number, which the pipeline knows
    return len(own.timesteps)


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Without the pipeline's own progress bars."""
    if not hasattr(pipeline, "set_progress_bar_config"):
        yield
        return
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)


@dataclass(frozen=True)
class ProbeBuilder:
    """Builds a probe for each input signature of a denoiser."""

    notes: Notes
    sites: str | Sequence[str]
    compare_kv: bool

    def with_schedule(self, schedule: Schedule) -> ProbeBuilder:
        """A probe has no schedule."""
        del schedule
        return self

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CompileOptions,
    ) -> Any:
        """The probe, which a denoiser calls as it calls a program."""
        del options
        return Probe(
            capture(model, args, kwargs),
            sites=self.sites,
            num_steps=self.notes.num_steps,
            max_age=self.notes.max_age,
            compare_kv=self.compare_kv,
            notebook=self.notes,
        )


class Notes:
    """Sums up what probes see.

    Args:
        num_steps: Steps of the trajectory.
        max_age: Largest age.
        cells_per_step: Reuses to try at each step.
        rng: Chooses them.
        bar: Shows the progress.
    """

    def __init__(
        self,
        num_steps: int,
        max_age: int,
        cells_per_step: int,
        rng: np.random.Generator,
        bar: tqdm[Any],
    ) -> None:
        self.num_steps, self.max_age = num_steps, max_age
        self._cells_per_step, self._rng, self._bar = cells_per_step, rng, bar
        self.weight = 1
        self._sites: tuple[str, ...] = ()
        self._entropy: list[Weighed] = [[] for _ in range(num_steps)]
        self._change: list[Weighed] = [[] for _ in range(num_steps)]
        self._cells: list[tuple[float, ...]] = []
        self._first_stream: object = None

    def note_sites(self, sites: tuple[str, ...]) -> None:
        """Which sites a probe looks at."""
        self._sites = sites

    def note_step(
        self, step: int, stream: object, entropy: Tensors, change: Sequence[Changes]
    ) -> None:
        """What a step gave: per site its entropy, per site and age its change."""
        row = np.full((len(change), self.max_age), np.nan)
        for age in change[0]:
            row[:, age - 1] = torch.stack([ages[age] for ages in change]).cpu()
        broad = torch.stack(list(entropy)).cpu().double().numpy()
        self._entropy[step].append((self.weight, broad))
        self._change[step].append((self.weight, row))
        self._first_stream = self._first_stream or stream
        if stream == self._first_stream:
            self._bar.update()

    def note_cell(self, step: int, site: int, age: int, errors: tuple[float, ...]) -> None:
        """What a reuse did: errors as `Cells` has them."""
        self._cells.append((step, site, age, *errors))

    def choose_cells(self, num_sites: int, known: Sequence[int]) -> list[tuple[int, int]]:
        """``(site, age)`` of the reuses to try at a step: sites and known ages by chance."""
        if not known:
            return []
        count = min(self._cells_per_step, num_sites)
        sites = self._rng.choice(num_sites, count, replace=False)
        ages = np.asarray(known)[self._rng.integers(0, len(known), count)]
        return list(zip(sites.tolist(), ages.tolist(), strict=True))

    def finish(self, snr: NDArray[np.float64], model: nn.Module, samples: int) -> Calibration:
        """The means.

        Raises:
            ScheduleError: A step was never seen.
        """
        unseen = [step for step, rows in enumerate(self._entropy) if not rows]
        if unseen or len(snr) != self.num_steps:
            raise ScheduleError(
                f"the pipeline called its denoiser at {self.num_steps - len(unseen)} of "
                f"{self.num_steps} steps, and its scheduler has {len(snr)}. Expected one call "
                "or several per step; give num_steps as the number of timesteps"
            )
        change = np.stack([weighted_mean(rows) for rows in self._change])
        if self.num_steps > 1 and np.isnan(change).all():
            raise ScheduleError(
                "no step could be compared with an earlier one: each call looked like a new "
                "trajectory. Expected one latent for all guidance branches of a step, or "
                "calls inside cache_context(name, step_index=...)"
            )
        columns = np.array(self._cells, np.float64).reshape(-1, 6).T
        step, site, age = columns[:3].astype(np.int64)
        return Calibration(
            sites=self._sites,
            snr=snr,
            entropy=np.stack([weighted_mean(rows) for rows in self._entropy]),
            change=change,
            cells=Cells(step, site, age, *columns[3:]),
            fingerprint=Fingerprint.of(model),
            samples=samples,
        )


def weighted_mean(rows: Weighed) -> NDArray[np.float64]:
    """The mean of what is known, each by its weight; NaN where nothing is."""
    weights = np.array([weight * ~np.isnan(row) for weight, row in rows], np.float64)
    values = np.array([np.nan_to_num(row) for _, row in rows])
    total = weights.sum(axis=0)
    summed = (weights * values).sum(axis=0)
    return np.asarray(np.where(total > 0, summed / np.maximum(total, 1), np.nan))
