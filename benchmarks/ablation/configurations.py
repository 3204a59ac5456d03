"""Who takes part: the report's four configurations, and rivals of equal cost or reuse."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.ablation.facts import Facts
from benchmarks.harness.contenders import WARMUP, Contender
from dqar_fx import Schedule

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


@dataclass(frozen=True)
class Entry:
    """One row to be: who it is, and what is known of it before it runs."""

    contender: Contender
    facts: Facts


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
    ]
    if more:
        transformed += [
            (MENDED_FP16, mended, "output", "fp16"),
            (MENDED_KV, mended, "kv", "fp16"),
        ]
    return [
        Contender(BASELINE, steps, compiled=compiled),
        *(
            Contender(name, steps, schedule, compiled, keep, cache)
            for name, schedule, keep, cache in transformed
        ),
    ]


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
