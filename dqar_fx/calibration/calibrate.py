"""Calibration: one call that runs a pipeline and measures what gates decide on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dqar_fx.capture.capture import capture
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.noise import noise_as_set
from dqar_fx.schedule.schedule import check_at_least

from .attention_probe import AttentionProbe
from .attention_record import AttentionRecord
from .observe import ObservedDenoiser
from .pipeline_run import check_pipeline, count_timesteps, substitute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .calibration import Calibration


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

    This takes about as long as the pipeline does in eager mode, times two plus
    ``cells_per_step`` (twice that with ``compare_kv``), and keeps the attention outputs of
    ``max_age`` steps.

    Args:
        pipeline: A diffusers pipeline with a ``transformer`` and a ``scheduler``; both are as
            before when this returns.
        inputs: Prompts or class labels: the pipeline's first argument.
        num_steps: Denoising steps (``num_inference_steps``).
        max_age: How many steps back outputs are compared.
        cells_per_step: How many reuses are tried at each step, of one site each, to see what
            they do to the denoiser's output; `Policy` learns from these.
        compare_kv: Whether to try kept keys and values as well.
        sites: As for ``transform``.
        batch_size: Inputs per run.
        seed: Seed of the noise, and of the choice of cells.
        progress: Whether to show a progress bar.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        What was measured, as the mean over inputs and streams.

    Raises:
        CaptureError: The denoiser cannot be captured.
        SiteError: No site is found, or a pattern selects none.
        ScheduleError: There are no inputs, or an argument is out of range.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_at_least(1, num_steps=num_steps, max_age=max_age, batch_size=batch_size)
    check_at_least(0, cells_per_step=cells_per_step)
    check_pipeline(pipeline, "calibration needs")
    prompts = [inputs] if isinstance(inputs, str) else list(inputs)
    if not prompts:
        raise ScheduleError("calibration needs at least one prompt or label")
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    model, length = pipeline.transformer, count_timesteps(pipeline.scheduler, num_steps)
    total = length * len(batches)
    with tqdm(total=total, desc="calibrate", disable=not progress) as bar:
        rng = np.random.default_rng(seed)
        record = AttentionRecord(length, max_age, cells_per_step, rng, bar.update)

        denoiser = ObservedDenoiser(
            model,
            lambda fork, args, kwargs: AttentionProbe(
                capture(fork, args, kwargs), sites, record, compare_kv=compare_kv
            ),
        )
        with substitute(pipeline, denoiser) as scheduler:
            for number, batch in enumerate(batches):
                generator = torch.Generator().manual_seed(seed + number)
                torch.manual_seed(seed + number)  # for schedulers that are given no generator
                record.weight = len(batch)
                pipeline(batch, num_inference_steps=num_steps, generator=generator, **call)
    return record.finish(noise_as_set(scheduler), model, len(prompts))
