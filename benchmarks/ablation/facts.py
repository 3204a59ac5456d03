"""What is known of a contender before anything runs: its table, its cache, its cost.

Read off a copy of the model on the meta device, which is captured once per thing to keep.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

import dqar_fx
from benchmarks.harness.contenders import Contender
from benchmarks.harness.macs import count_macs, count_schedules, to_meta, to_meta_call
from benchmarks.main_job.rows import write_out
from dqar_fx import DqarError
from dqar_fx.passes import FORMATS


@dataclass(frozen=True)
class Facts:
    """What is known of a contender; None where it is unknown or there is none.

    Attributes:
        steps: Denoising steps.
        schedule: The branch table, written out.
        reuse_ratio: Share of steps and sites that reuse.
        cache_bytes: Slots of the stream of one batch.
        macs: Multiply-accumulates of a trajectory.
    """

    steps: int
    schedule: str | None = None
    reuse_ratio: float | None = None
    cache_bytes: int | None = None
    macs: int | None = None


@torch.no_grad()
def gather_facts(
    model: nn.Module, call: dict[str, torch.Tensor], contenders: Sequence[Contender]
) -> dict[str, Facts]:
    """The facts of contenders, by name.

    Args:
        model: The untransformed model, on any device.
        call: Keyword arguments of one call.
        contenders: Who.
    """
    meta, inputs = to_meta(model), to_meta_call(call)
    step_macs = count_macs(lambda: meta(**inputs))
    facts = {c.name: Facts(c.steps, macs=c.steps * step_macs) for c in contenders}
    transformed = [c for c in contenders if c.schedule is not None]
    for keep in sorted({c.keep for c in transformed}):
        facts |= describe(meta, inputs, keep, [c for c in transformed if c.keep == keep])
    return facts


def describe(
    meta: nn.Module,
    inputs: dict[str, torch.Tensor],
    keep: str,
    contenders: Sequence[Contender],
) -> dict[str, Facts]:
    """The facts of transformed contenders that keep the same; a refusal is told."""
    schedules = [c.schedule for c in contenders if c.schedule is not None]
    try:
        # Lossy formats look at what they keep, and there are no values here.
        probe = dqar_fx.transform(meta, schedules[0], keep=keep, cache="same")
        probe.prepare(**inputs)
        macs = count_schedules(probe, inputs, schedules)
        twins = [probe.with_schedule(schedule) for schedule in schedules]
    except DqarError as error:
        print(f"no cost is known of keep={keep!r}: {error}", file=sys.stderr)
        return {c.name: Facts(c.steps) for c in contenders}
    return {
        contender.name: Facts(
            steps=contender.steps,
            schedule=write_out(twin.table),
            reuse_ratio=twin.table.reuse_ratio,
            cache_bytes=count_bytes(twin, contender.cache),
            macs=each,
        )
        for contender, twin, each in zip(contenders, twins, macs, strict=True)
    }


def count_bytes(denoiser: dqar_fx.Denoiser, cache: str) -> int:
    """Slot bytes of one stream if it kept the same in another format, scales included."""
    kept = denoiser.program.buffer_specs.values()
    return sum(buffer.nbytes for spec in kept for buffer in FORMATS[cache].specs(spec))
