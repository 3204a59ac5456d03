"""Attention backends of diffusers, and attention that is an operator of another library."""

import math

import pytest
import torch
from torch import nn

import dqar_fx
from dqar_fx import DqarError, Schedule
from dqar_fx.passes import NoMatch, expose_attention, find_attention
from tests.helpers.models import make_flux, seeded, settled
from tests.helpers.rewrite_checks import captured_by_name

SCHEDULE = Schedule.interval(4, 2)


@torch.library.custom_op("dqar_fx_tests::opaque_attention", mutates_args=())
def opaque_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Takes and gives ``[batch, tokens, heads, channels]``, as flash attention does."""
    moved = (each.transpose(1, 2) for each in (q, k, v))
    return nn.functional.scaled_dot_product_attention(*moved).transpose(1, 2).contiguous()


@opaque_attention.register_fake
def _(q, k, v):
    del k, v
    return torch.empty_like(q)


@torch.library.custom_op("dqar_fx_tests::attention_mask", mutates_args=())
def attention_mask(lengths: torch.Tensor) -> torch.Tensor:
    """No attention, whatever its name says."""
    return lengths * 1.0


@attention_mask.register_fake
def _(lengths):
    return torch.empty_like(lengths)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).unbind(2)
        return self.out(opaque_attention(q, k, v).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.ff = Attention(), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.ff(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, hidden_states, timestep):
        x = hidden_states * attention_mask(timestep)[:, None, None]
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def model():
    return settled(Model())


def inputs(step):
    return {"hidden_states": seeded(2, 5, 8) + step, "timestep": torch.full((2,), 4.0 - step)}


@pytest.mark.parametrize("capture", ["graph", "blocks"])
def test_an_operator_of_another_library_is_a_site(capture, model):
    denoiser = dqar_fx.transform(model, SCHEDULE, sites="attention", capture=capture)
    found = [denoiser(**inputs(step)) for step in range(4)]
    sites = [(s.path, s.kind, s.variant) for s in denoiser.explain().sites]
    assert sites == [(f"blocks.{i}.attn", "self", "custom") for i in range(2)]
    assert denoiser.runs[0].num_reused == denoiser.runs[0].num_promised == 4
    kept = {}

    def keep(module, _inputs, output):
        kept[module] = kept[module] if step % 2 else output
        return kept[module]

    for block in model.blocks:
        block.attn.register_forward_hook(keep)
    for step in range(4):
        with torch.no_grad():
            assert torch.equal(found[step], model(**inputs(step)))


def test_keys_and_values_of_it_are_kept(model):
    denoiser = dqar_fx.transform(model, SCHEDULE, keep="kv")
    outputs = [denoiser(**inputs(step)) for step in range(2)]
    assert denoiser.cache_bytes == 2 * 2 * (2 * 5 * 8) * 4
    with torch.no_grad():
        assert torch.equal(outputs[0], model(**inputs(0)))
        assert not torch.equal(outputs[1], model(**inputs(1)))


def test_an_operator_with_such_a_name_alone_is_a_near_miss(model):
    gm = captured_by_name(model, **inputs(0))
    matches, (miss,) = find_attention(gm)
    assert len(matches) == 2
    assert isinstance(miss, NoMatch)
    assert "attention_mask" in str(miss)
    assert "no queries, keys and values" in str(miss)


def test_its_entropy_is_not_known(model):
    gm = captured_by_name(model, **inputs(0))
    matches, _ = find_attention(gm)
    assert expose_attention(gm, matches) == 4
    gm.recompile()
    _, _, *exposed = torch.utils._pytree.tree_leaves(gm(*inputs(0).values()))
    assert [math.isnan(each) for each in exposed if each.dim() == 0] == [True, True]


@pytest.mark.parametrize("is_first", [False, True])
def test_the_native_backend_of_diffusers_is_the_models(is_first):
    case = make_flux()
    denoiser = dqar_fx.transform(case.model, SCHEDULE)
    if is_first:
        case.model.set_attention_backend("native")
        denoiser = dqar_fx.transform(case.model, SCHEDULE)
    else:
        denoiser.set_attention_backend("native")
        case.model.set_attention_backend("native")
    with torch.no_grad():
        for _ in range(2):
            given = case.inputs(0)
            assert torch.equal(denoiser(**given).sample, case.model(**given).sample)
    assert len(denoiser.explain().sites) == 5


@pytest.mark.parametrize("name", ["flash", "sage", "no such backend"])
def test_a_backend_that_is_not_there_raises_as_of_the_model(name):
    model = make_flux().model
    denoiser = dqar_fx.transform(model, SCHEDULE)
    said = []
    for each in (model, denoiser):
        with pytest.raises((RuntimeError, ValueError, ImportError)) as raised:
            each.set_attention_backend(name)
        said.append((type(raised.value), str(raised.value)))
    assert said[0] == said[1]
    assert not isinstance(raised.value, DqarError)
