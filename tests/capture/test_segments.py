"""Blocks as one graph: which they are, what is left, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from diffusers import HiDreamImageTransformer2DModel
from torch import nn

import dqar_fx
from dqar_fx import CaptureError, Schedule
from dqar_fx.capture.block_calls import record_calls
from dqar_fx.capture.segments import capture_segments
from tests.helpers.block_models import Blocks, Cache, call_copies, call_with_cache, inputs_at
from tests.helpers.models import Case, make_flux, seeded, settled


def test_recording_changes_neither_model_nor_inputs_nor_random_numbers():
    class Stateful(Blocks):
        def __init__(self):
            super().__init__(call_with_cache)
            self.register_buffer("calls", torch.zeros(()))
            self.number = 0

        def forward(self, x, timestep, cache):
            self.calls += 1
            self.number += 1
            x += torch.randn_like(x)
            return super().forward(x, timestep, cache)

    model, cache, inputs = Stateful().eval(), Cache(), inputs_at(0)
    x = inputs["x"].clone()
    state = torch.random.get_rng_state()
    record_calls(model, (), {**inputs, "cache": cache})
    assert (model.calls, model.number, model.means, cache.calls) == (0, 0, [], [])
    assert torch.equal(inputs["x"], x)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_recording_knows_calls_and_which_hold_an_attention():
    recording = record_calls(Blocks(call_copies).eval(), (), inputs_at(0))
    blocks = [call for call in recording.root.inside if call.path.startswith("blocks")]
    assert [call.path for call in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(call.has_attention for call in blocks)
    held = {call.path: call.has_attention for call in blocks[0].inside}
    assert held == {"blocks.0.norm": False, "blocks.0.attn": True, "blocks.0.ff": False}
    assert not recording.root.inside[-1].has_attention  # the projection


def test_segments_of_two_lists_have_the_paths_of_the_model():
    case = make_flux()
    found = capture_segments(case.model, (), case.inputs(0))
    lists = {"transformer_blocks": 2, "single_transformer_blocks": 3}
    paths = [f"{name}.{i}" for name, size in lists.items() for i in range(size)]
    assert [segment.path for segment in found.segments] == paths
    assert found.left == {}
    stacks = [n.meta.get("nn_module_stack") or {} for n in found.capture.gm.graph.nodes]
    made = {path for stack in stacks for path, _ in stack.values()}
    assert set(paths) < made


def test_segments_of_a_model_without_blocks_say_what_a_block_is():
    class Flat(nn.Module):
        def forward(self, x):
            return x + 1

    with pytest.raises(CaptureError, match="entries of a ModuleList that hold an attention"):
        capture_segments(Flat(), (torch.ones(2),), {})


@pytest.mark.slow
def test_segments_of_experts_that_read_the_latent_are_their_attention():
    model = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    given = {
        "encoder_hidden_states_t5": seeded(2, 8, 32),
        "encoder_hidden_states_llama3": seeded(2, 2, 8, 16).transpose(0, 1).contiguous(),
        "pooled_embeds": seeded(2, 64),
    }
    case = Case(settled(model), (2, 4, 32, 32), given)

    def call(step):
        inputs = case.inputs(step)
        inputs["timesteps"] = inputs.pop("timestep")
        return inputs

    denoiser = dqar_fx.transform(model, Schedule.from_actions("SR"))
    with pytest.warns(UserWarning, match=r"fails in double_stream_blocks\.0\.block\.ff_i"):
        found = denoiser(**call(0)).sample
    paths = [f"{name}_stream_blocks.0.block.attn1" for name in ("double", "single")]
    assert list(denoiser.table.sites) == paths
    kept = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda module, _, output: kept.setdefault(module, output)
        )
    with torch.no_grad():
        assert torch.equal(found, model(**call(0)).sample)
        assert torch.equal(denoiser(**call(1)).sample, model(**call(1)).sample)
    assert "double_stream_blocks.0.block.ff_i" in denoiser.explain().uncaptured
