"""Blocks whose stream is cast, gated, or has values beside it: reused as by hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import Schedule, SiteError
from tests.helpers.block_oracle import BlockOracle
from tests.helpers.models import Attention
from tests.helpers.slow_cases import slow_but
from tests.helpers.stream_models import STREAM_MAKERS, make_wan

STEPS = 5
OF_FIRST = {"vace_blocks.0": "hidden_states"}
"""VACE's first hint: the stream of the hints begins with a linear, and adds to this one."""
DTYPES = (torch.float32, torch.bfloat16)


def reused(case, sites="block", **options):
    """A denoiser that computes each third step, and the oracle of its table."""
    denoiser = dqar_fx.transform(
        case.model, Schedule.interval(STEPS, 3), sites=sites, **options
    )
    denoiser.prepare(**case.inputs(0))
    return denoiser, BlockOracle(case.model, denoiser.table, OF_FIRST)


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_but(
        ("wan", torch.bfloat16),
        ("vace", torch.float32),
        of=[(name, dtype) for name in STREAM_MAKERS for dtype in DTYPES],
    ),
)
def test_streams_every_block_reused_equals_hooks_bit_for_bit(name, dtype):
    case = STREAM_MAKERS[name]()
    case = case if dtype == torch.float32 else case.to(dtype)
    denoiser, oracle = reused(case)
    assert len(denoiser.table.sites) == case.num_blocks
    outputs = []
    for step in range(STEPS):
        outputs.append(denoiser(**case.inputs(step)).sample)
        assert torch.equal(outputs[-1], oracle(step, **case.inputs(step))), f"step {step}"
    with torch.no_grad():
        plain = case.model(**case.inputs(1)).sample
    assert torch.isfinite(plain).all()
    assert not torch.equal(outputs[1], plain)  # reuse is seen at all


class Promoting(nn.Module):
    """A block whose output has another dtype than its input, and a gate on what it adds."""

    def __init__(self, dtype):
        super().__init__()
        self.attention, self.dtype = Attention(8), dtype

    def forward(self, x, gate):
        change = self.attention(x.to(self.attention.qkv.weight.dtype)) * gate
        return (x.float() + change.float()).to(self.dtype)


class Promoted(nn.Module):
    """Blocks of which the first promotes the stream, and the last takes it back."""

    def __init__(self, dtypes):
        super().__init__()
        self.blocks = nn.ModuleList(Promoting(dtype) for dtype in dtypes)

    def forward(self, hidden_states, timestep):
        gate = timestep.reshape(-1, 1, 1).to(hidden_states.dtype).cos() + 2
        for block in self.blocks:
            hidden_states = block(hidden_states, gate)
        return hidden_states


def test_streams_of_another_dtype_than_the_output_are_cast_once():
    torch.manual_seed(0)
    model = Promoted([torch.float32, torch.float32, torch.bfloat16]).to(torch.bfloat16).eval()
    denoiser = dqar_fx.transform(model, Schedule.interval(3, 3), sites="block")
    inputs = [torch.randn(1, 5, 8).bfloat16() for _ in range(3)]
    denoiser.prepare(inputs[0], timestep=torch.ones(1))
    assert [site.kept[0].dtype for site in denoiser.explain().sites] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
    ]
    kept = []
    for step, x in enumerate(inputs):
        timestep = torch.full((1,), 3.0 - step)
        found = denoiser(x, timestep=timestep)
        with torch.no_grad():
            gate = timestep.reshape(-1, 1, 1).bfloat16().cos() + 2
            for place, block in enumerate(model.blocks):
                if step == 0:
                    out = block(x, gate)
                    kept.append(out - x.to(out.dtype))
                else:
                    out = x.to(kept[place].dtype) + kept[place]
                x = out
        assert torch.equal(found, x)


class Sliced(nn.Module):
    """A block that writes to a part of its stream, in place, and subtracts."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(8)

    def forward(self, x):
        change = self.attention(x)
        x = x.clone()
        x[:, 1:] += change[:, 1:]
        x.addcmul_(change, change)
        return x - change.sin()


def test_streams_written_in_place_are_residuals():
    torch.manual_seed(0)
    model = nn.ModuleList([Sliced(), Sliced()])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = model

        def forward(self, hidden_states, timestep):
            x = hidden_states * timestep.reshape(-1, 1, 1)
            for block in self.blocks:
                x = block(x)
            return x

    own = Model().eval()
    denoiser = dqar_fx.transform(own, Schedule.interval(2, 2), sites="block")
    inputs = [torch.randn(1, 5, 8) for _ in range(2)]
    denoiser(inputs[0], timestep=torch.ones(1))
    found = denoiser(inputs[1], timestep=torch.zeros(1) + 0.5)
    with torch.no_grad():
        expected, x = inputs[1] * 0.5, inputs[0]
        for block in own.blocks:
            y = block(x)
            expected, x = expected + (y - x), y
    assert torch.equal(found, expected)
    assert denoiser.table.sites == ("blocks.0", "blocks.1")


def test_streams_compiled_by_region_have_as_many_graphs_for_more_blocks():
    def count(case):
        torch._dynamo.reset()
        counters.clear()
        options = {"unit": "regional", "backend": "eager"}
        denoiser, oracle = reused(case, compile=options)
        for step in range(STEPS):
            found = denoiser(**case.inputs(step)).sample
            expected = oracle(step, **case.inputs(step))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"]

    few, more = make_wan(), make_wan(layers=5)
    assert count(few) == count(more)


class Replacing(nn.Module):
    """A block whose output adds to nothing."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(8)

    def forward(self, x, gate):
        return self.attention(x) * gate


def test_streams_without_any_say_what_comes_near_and_where():
    model = Promoted([]).eval()
    model.blocks = nn.ModuleList([Replacing(), Replacing()])
    denoiser = dqar_fx.transform(model, Schedule.interval(2, 2), sites="block")
    with pytest.raises(SiteError) as raised:
        denoiser.prepare(torch.randn(1, 5, 8), timestep=torch.ones(1))
    text = str(raised.value)
    for path in ("blocks.0", "blocks.1"):
        assert f"{path} gives [1, 5, 8], which no chain of additions" in text
    assert text.count("(at %mul") == 2
    assert text.count("(test_streams_of_blocks.py:") == 2
    assert "sites='attention'" in text
    assert "blocks.0.attention  self" in text
