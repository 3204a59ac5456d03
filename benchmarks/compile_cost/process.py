"""What one process measures: a model's first trajectory against its second.

Not counted: the start of the process, imports, the model's construction, what torch.export
and Inductor set up once (something tiny is exported and compiled before), and running: from
each step that compiled something, the same step of a second trajectory is taken off. Counted
are capture, passes and table, Dynamo, Inductor and the C++ compiler.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from torch._dynamo.utils import counters

import dqar_fx
from benchmarks.compile_cost.rows import Measured, Point
from benchmarks.harness.machine import set_up_compiler, synchronise
from benchmarks.harness.timing import Compiled

CPU = torch.device("cpu")


Step = tuple[float, Compiled]
"""A step's time in seconds, and what was compiled in it."""


@torch.no_grad()
def measure(point: Point, device: torch.device = CPU, **keywords: Any) -> Measured:
    """Compile in this process, with the cache as it is.

    Args:
        point: What is compiled.
        device: Where it runs.
        **keywords: Further ones of ``torch.compile``.
    """
    model = point.geometry.build().to(device)
    set_up(device, keywords)
    hits = count_hits()
    module, transform_s = build(model, point, device, keywords)
    first, second = (run_trajectory(module, point, device) for _ in range(2))
    taken_off = [
        (once_s - again_s, compiled.graphs > 0)
        for (once_s, compiled), (again_s, _) in zip(first, second, strict=True)
    ]
    return Measured(
        transform_s=transform_s,
        compile_s=(transform_s or 0.0) + sum(s for s, compiled in taken_off if compiled),
        other_s=sum(s for s, compiled in taken_off if not compiled),
        run_s=sum(seconds for seconds, _ in second),
        graphs=sum(compiled.graphs for _, compiled in first),
        breaks=sum(compiled.breaks for _, compiled in (*first, *second)),
        recompiles=sum(compiled.graphs for _, compiled in second),
        cache_hits=count_hits() - hits,
        distinct_rows=1 if transform_s is None else len(module.table.rows),
    )


def set_up(device: torch.device, keywords: Mapping[str, Any]) -> None:
    """Do once what no measurement should pay for."""
    set_up_compiler(device, **keywords)
    torch.export.export(nn.ReLU(), (torch.ones(8),), strict=False)


def build(
    model: nn.Module, point: Point, device: torch.device, keywords: Mapping[str, Any]
) -> tuple[Any, float | None]:
    """What is called, and the time of the transformation if there is one."""
    if point.kind == "whole":
        return torch.compile(model, fullgraph=True, **keywords), None
    call = next(point.geometry.draw_calls(point.steps, device))
    start = time.perf_counter()
    compiled = {"unit": "regional", **keywords}
    denoiser = dqar_fx.transform(model, point.schedule, compile=compiled)
    denoiser.prepare(**call)
    return denoiser, time.perf_counter() - start


def run_trajectory(model: Any, point: Point, device: torch.device) -> list[Step]:
    """Each step of a trajectory, called as stock pipelines call."""
    steps = []
    for call in point.geometry.draw_calls(point.steps, device):
        before, start = Compiled.so_far(), time.perf_counter()
        model(**call)
        synchronise(device)
        steps.append((time.perf_counter() - start, Compiled.so_far() - before))
    return steps


def count_hits() -> int:
    """Graphs that were found in the cache on disk so far."""
    return int(counters["aot_autograd"]["autograd_cache_hit"])


def write_order(point: Point, threads: int) -> str:
    """What a process is told."""
    return msgspec.json.encode({"point": point, "threads": threads}).decode()


def main(argv: Sequence[str]) -> int:
    """Measure what `write_order` wrote, and print it as the last line."""
    order = msgspec.json.decode(argv[0])
    torch.set_num_threads(order["threads"])
    measured = measure(msgspec.convert(order["point"], Point))
    print(msgspec.json.encode(measured).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
