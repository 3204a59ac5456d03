"""Fewer steps of the untransformed model, with as many multiply-accumulates as our tables."""

from typing import Any

import torch

import dqar_fx
from benchmarks.harness.macs import count_macs, count_schedules, to_meta, to_meta_call
from benchmarks.pareto.bench import Bench
from benchmarks.pareto.lineup import make_interval
from benchmarks.peers.lineup import OWN_EVERY, OWN_ORDER
from benchmarks.peers.same_tables import list_tables
from dqar_fx import Schedule


@torch.no_grad()
def find_equal_cost(bench: Bench) -> tuple[int, ...]:
    """Numbers of steps with as many multiply-accumulates as our tables have."""
    meta: Any = to_meta(bench.original)
    inputs = to_meta_call(bench.task(0).example_call(bench.original))
    step = count_macs(lambda: meta(**inputs))
    found: list[int] = []
    for sites, schedules in group_by_sites(bench.steps).items():
        named = sites.format(last=len(meta.transformer_blocks))
        probe = dqar_fx.transform(meta, Schedule.compute_all(1), sites=named)
        probe.prepare(**inputs)
        found += [round(m / step) for m in count_schedules(probe, inputs, schedules)]
    return tuple(sorted({n for n in found if 0 < n < bench.steps}, reverse=True))


def group_by_sites(steps: int) -> dict[str, list[Schedule]]:
    """The schedules that need no calibration."""
    own = make_interval(steps, every=OWN_EVERY, warmup=1, order=OWN_ORDER)
    tables = [(same.sites, same.schedule) for same in list_tables(steps)]
    grouped: dict[str, list[Schedule]] = {}
    for sites, schedule in (*tables, ("all", own)):
        if schedule is not None:
            grouped.setdefault(sites, []).append(schedule)
    return grouped
