"""Guidance with compiled regions: both streams share them."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import Guidance, Schedule
from tests.helpers.guidance_oracle import ORDERS, call_both, make_case, streams_of
from tests.helpers.slow_cases import slow_but

FIRST = ORDERS[0]


@pytest.fixture(scope="module")
def case():
    return make_case(2)


@pytest.mark.parametrize("batched", slow_but(FIRST, of=[FIRST, None]))
def test_compiled_regions_are_shared_and_never_compiled_again(case, batched):
    torch._dynamo.reset()
    counters.clear()
    output = Schedule.from_actions("CCRRCRRR").forecast(1)
    guidance = Guidance(Schedule.interval(8, 2, max_age=2), output, "difference", batched)
    schedule = Schedule.linear(8, 2)
    eager = dqar_fx.transform(case.model, schedule, guidance=guidance)
    compiled = dqar_fx.transform(
        case.model, schedule, guidance=guidance, compile={"backend": "aot_eager"}
    )

    def generate(denoiser, seed):
        if batched:
            return [denoiser(**case.inputs(step, seed)).sample for step in range(8)]
        steps = (call_both(denoiser, s, *streams_of(case, s, seed)) for s in range(8))
        return [torch.cat(pair) for pair in steps]

    results = generate(compiled, 0)
    assert compiled.unconditional.lowering is compiled.program.lowering
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs == len(compiled.program.variants)
    with torch.compiler.set_stance("fail_on_recompile"):
        results += generate(compiled, 1)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == num_graphs
    expected = generate(eager, 0) + generate(eager, 1)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-3, atol=1e-3)
