"""Scopes of autocast and gradient mode in a forward are part of the one graph, bit for bit."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import nn

import dqar_fx
from benchmarks.stock import z_image
from dqar_fx.capture.capture import capture
from tests.helpers.models import settled

STEPS = 4


class Attention(nn.Module):
    """Attention whose projections stand in a scope."""

    def __init__(self, scope):
        super().__init__()
        self.scope = scope
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        with self.scope():
            q = self.inside(q)
        k, v = k.to(q.dtype), v.to(q.dtype)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).to(x.dtype))

    def inside(self, q):
        return nn.functional.linear(q.float(), self.out.weight) * 2


class Nested(Attention):
    """Scopes in a scope, with attention inside of them."""

    def inside(self, q):
        q = self.out(q.float())
        with torch.autocast("cpu", enabled=False), torch.set_grad_enabled(True):
            inner = super().inside(q) * 1.5
        q = nn.functional.scaled_dot_product_attention(q, q, q)
        return self.out(inner + q.float())


class Model(nn.Module):
    def __init__(self, make, scope):
        super().__init__()
        self.blocks = nn.ModuleList(make(scope) for _ in range(2))

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = hidden_states + block(hidden_states) * timestep[:, None, None]
        return hidden_states


class Whole(Model):
    """What a scope gives is what the model returns."""

    def forward(self, hidden_states, timestep):
        with self.blocks[0].scope():
            return super().forward(hidden_states, timestep)


class Writes(Model):
    """A scope with an operator that writes to its input."""

    def forward(self, hidden_states, timestep):
        x = hidden_states * 1.0
        with self.blocks[0].scope():
            x.add_(1.0)
        return super().forward(x, timestep)


SCOPES = {
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "autocast on": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": lambda: torch.autocast("cuda", enabled=False),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled": lambda: torch.set_grad_enabled(True),
}
AROUND = {
    "plain": nullcontext,
    "autocast around": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
MODELS = {
    "attention": lambda scope: Model(Attention, scope),
    "nested": lambda scope: Model(Nested, scope),
    "whole": lambda scope: Whole(Nested, scope),
    "writes": lambda scope: Writes(Attention, scope),
}


def inputs(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(1, 5, 8, generator=generator), torch.tensor([float(STEPS - step)])


def check_equal(model, denoiser, calls, around=nullcontext):
    """Each call of both gives the same bits."""
    with torch.no_grad(), around(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Mochi asks for autocast to float32
        for call in calls:
            found, wanted = denoiser(**call), model(**call)
            for one, other in zip(as_leaves(found), as_leaves(wanted), strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)


def as_leaves(outputs):
    return torch.utils._pytree.tree_leaves(outputs)


def calls_of_tower():
    for step in range(STEPS):
        hidden_states, timestep = inputs(step)
        yield {"hidden_states": hidden_states, "timestep": timestep}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_scopes_is_captured_bit_for_bit(name, scope, around):
    model = settled(MODELS[name](SCOPES[scope]))
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.compute_all(STEPS))
    check_equal(model, denoiser, calls_of_tower(), AROUND[around])
    assert set(denoiser.table.sites) == {"blocks.0", "blocks.1"}


def test_nodes_in_a_scope_keep_their_modules():
    model = settled(Model(Nested, SCOPES["autocast on"]))
    gm = capture(model, inputs(0), {}).gm
    linears = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    paths = [list(node.meta["nn_module_stack"].values())[-1][0] for node in linears]
    wanted = [
        f"blocks.{i}.{part}" for i in (0, 1) for part in ("qkv", "out", "", "out", "out")
    ]
    assert paths == [path.rstrip(".") for path in wanted]


def test_autocast_that_comes_and_goes_around_the_calls_is_told_apart():
    model = settled(Model(Attention, SCOPES["autocast off"]))
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.compute_all(STEPS))
    for around in (*AROUND.values(), *AROUND.values()):
        check_equal(model, denoiser, calls_of_tower(), around)
    assert len(denoiser.captured_programs()) == len(AROUND)


class Branches(Model):
    def forward(self, hidden_states, timestep):
        hidden_states = torch.cond(
            timestep.max() > 2, lambda x: x + 1, lambda x: x - 1, (hidden_states,)
        )
        return super().forward(hidden_states, timestep)


def test_a_graph_that_is_no_scope_is_refused():
    denoiser = dqar_fx.transform(
        settled(Branches(Attention, nullcontext)), dqar_fx.Schedule.compute_all(STEPS)
    )
    with pytest.raises(dqar_fx.CaptureError, match="cond has a graph of its own"):
        denoiser(*inputs(0))


def make_mochi():
    """Mochi, which asks for autocast to float32, and its inputs but the latent."""
    model = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    given = {
        "encoder_hidden_states": torch.randn(1, 16, 32),
        "encoder_attention_mask": torch.ones(1, 16).bool(),
    }
    return settled(model), given, lambda: {"hidden_states": torch.randn(1, 12, 2, 4, 4)}


def make_z_image():
    """Z-Image, which turns autocast off for its positions, and its inputs but the latent."""
    given = {"cap_feats": [torch.randn(7, 16)]}
    return z_image.make().transformer, given, lambda: {"x": [torch.randn(16, 1, 4, 4)]}


STOCK = {
    "mochi": (make_mochi, "timestep", {f"transformer_blocks.{i}.attn1" for i in (0, 1)}),
    "z_image": (
        make_z_image,
        "t",
        {f"{part}.attention" for part in ("noise_refiner.0", "layers.0", "layers.1")},
    ),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", STOCK)
def test_stock_models_with_scopes_are_captured_bit_for_bit(name, around):
    make, timestep, sites = STOCK[name]
    torch.manual_seed(0)
    model, given, latent = make()
    calls = [
        {**given, **latent(), timestep: torch.tensor([900.0 - step])} for step in range(STEPS)
    ]
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.compute_all(STEPS))
    check_equal(model, denoiser, calls, AROUND[around])
    other = denoiser.with_schedule(dqar_fx.Schedule.interval(STEPS, 2))
    with AROUND[around]():
        for call in calls:
            other(**call)
    assert set(other.table.sites) == sites
    assert other.table.reuse_ratio == 0.5
