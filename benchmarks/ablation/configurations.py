"""Who takes part, and what is known of each before it runs: its table, its cache, its cost.

The latter is read off a copy of the model on the meta device, which is captured once per thing
to keep.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import dqar_fx
from benchmarks.harness.contenders import WARMUP, Contender, Workshop
from benchmarks.harness.macs import count_macs, count_schedules, to_meta, to_meta_call
from benchmarks.main_job.rows import write_out
from dqar_fx import Denoiser, DqarError, Schedule
from dqar_fx.passes import FORMATS

BASELINE = "baseline"
SCHEDULING = "scheduling_only"
QUANT = "quant_cache_only"
FULL = "full_dqar"
KV = "scheduling_only, K/V"
MENDED = "full_dqar, max_age=3"
MENDED_FP16 = "scheduling_only, max_age=3"
MENDED_KV = "scheduling_only, K/V, max_age=3"
REPORTED = (SCHEDULING, QUANT, FULL)
"""The report's configurations that reuse."""
RIVALLED = (FULL, MENDED)
"""Those whose cost a rival with fewer steps has."""


def list_configurations(steps: int, *, compiled: bool, more: bool) -> list[Contender]:
    """The configurations, in the order of the table; the first is the baseline.

    Args:
        steps: Denoising steps.
        compiled: Whether there is a compiler.
        more: Whether to compare FP16 and K/V at the table with ``max_age=3``, too.
    """
    linear = Schedule.linear(steps, WARMUP)
    mended = Schedule.linear(steps, WARMUP, max_age=3)
    always = Schedule.from_actions("S" + "R" * (steps - 1))
    transformed = [
        (SCHEDULING, linear, "output", "fp16"),
        (QUANT, always, "output", "int8"),
        (FULL, linear, "output", "int8"),
        (KV, linear, "kv", "fp16"),
        (MENDED, mended, "output", "int8"),
        (MENDED_FP16, mended, "output", "fp16"),
        (MENDED_KV, mended, "kv", "fp16"),
    ]
    return [
        Contender(BASELINE, steps, compiled=compiled),
        *(
            Contender(name, steps, schedule, compiled, keep, cache)
            for name, schedule, keep, cache in transformed[: None if more else -2]
        ),
    ]


@dataclass(frozen=True)
class SharingWorkshop(Workshop):
    """Builds one denoiser per kind of cache, which others share captures and regions with.

    Attributes:
        latest: The denoiser that was built last, by what it keeps and how.
    """

    latest: dict[tuple[str, str], Denoiser] = field(default_factory=dict)

    def build(self, contender: Contender) -> Any:
        """A module to be called in the original's place."""
        if contender.schedule is None:
            return super().build(contender)
        key = contender.keep, contender.cache
        known = self.latest.get(key)
        if known is None:
            self.latest[key] = super().build(contender)
        else:
            self.latest[key] = known.with_schedule(contender.schedule)
        return self.latest[key]


# ---- what is known before anything runs -----------------------------------------------------


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


@dataclass(frozen=True)
class Entry:
    """One row to be: who it is, and what is known of it before it runs."""

    contender: Contender
    facts: Facts


@torch.no_grad()
def gather_facts(
    model: nn.Module, call: dict[str, torch.Tensor], contenders: Sequence[Contender]
) -> dict[str, Facts]:
    """The facts of contenders, by name, for a model on any device and one of its calls."""
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
        denoisers = [probe.with_schedule(schedule) for schedule in schedules]
    except DqarError as error:
        print(f"no cost is known of keep={keep!r}: {error}", file=sys.stderr)
        return {c.name: Facts(c.steps) for c in contenders}
    return {
        contender.name: Facts(
            steps=contender.steps,
            schedule=write_out(denoiser.table),
            reuse_ratio=denoiser.table.reuse_ratio,
            cache_bytes=count_bytes(denoiser, contender.cache),
            macs=each,
        )
        for contender, denoiser, each in zip(contenders, denoisers, macs, strict=True)
    }


def count_bytes(denoiser: Denoiser, cache: str) -> int:
    """Slot bytes of one stream if it kept the same in another format, scales included."""
    kept = denoiser.program.buffer_specs.values()
    return sum(buffer.nbytes for spec in kept for buffer in FORMATS[cache].specs(spec))


def list_fewer_steps(facts: Mapping[str, Facts], *, compiled: bool) -> list[Entry]:
    """The untransformed model with fewer steps, at the cost of `RIVALLED`."""
    base, rivals = facts[BASELINE], dict[int, Entry]()
    for name in RIVALLED:
        macs = facts[name].macs
        if macs is None or base.macs is None:
            continue
        steps = max(1, round(macs * base.steps / base.macs))
        contender = Contender(f"{steps} steps, {cost_of(name)}", steps, compiled=compiled)
        own = Facts(steps, macs=steps * base.macs // base.steps)
        # Of two of equal cost, one rival is enough.
        rivals.setdefault(steps, Entry(contender, own))
    return list(rivals.values())


def cost_of(name: str) -> str:
    """How the name of a rival ends."""
    return f"cost of {name}"
