"""Inputs that are derived from configs capture, and have the shapes that pipelines give."""

from __future__ import annotations

import argparse

import pytest
import torch

import dqar_fx
from dqar_fx import CaptureError, Schedule
from dqar_fx.command_line.arguments import size_of
from dqar_fx.command_line.example_inputs import derive_inputs, input_of
from dqar_fx.command_line.geometry import Sizes
from dqar_fx.command_line.models import build_model, load_model
from tests.helpers.config_files import (
    AURA,
    COGVIDEO,
    DIT,
    FLUX,
    PIXART,
    SANA,
    SD3,
    write_config,
)

EXPECTED = {
    "dit": (DIT, {"hidden_states": [2, 4, 8, 8], "timestep": [2], "class_labels": [2]}),
    "pixart": (
        PIXART,
        {
            "hidden_states": [2, 4, 8, 8],
            "encoder_hidden_states": [2, 120, 24],
            "timestep": [2],
            "added_cond_kwargs": None,
            "encoder_attention_mask": [2, 120],
        },
    ),
    "sd3": (
        SD3,
        {
            "hidden_states": [2, 16, 8, 8],
            "encoder_hidden_states": [2, 333, 24],
            "pooled_projections": [2, 12],
            "timestep": [2],
        },
    ),
    "flux": (
        FLUX,
        {
            "hidden_states": [2, 4096, 4],
            "encoder_hidden_states": [2, 512, 24],
            "pooled_projections": [2, 12],
            "timestep": [2],
            "img_ids": [4096, 3],
            "txt_ids": [512, 3],
            "guidance": [2],
        },
    ),
    "aura": (
        AURA,
        {
            "hidden_states": [2, 4, 8, 8],
            "encoder_hidden_states": [2, 512, 24],
            "timestep": [2],
        },
    ),
    "sana": (
        SANA,
        {
            "hidden_states": [2, 4, 8, 8],
            "encoder_hidden_states": [2, 512, 24],
            "timestep": [2],
            "encoder_attention_mask": [2, 512],
        },
    ),
}


def build(tmp_path, config):
    return build_model(write_config(tmp_path / "config.json", config), torch.float32)


@pytest.mark.parametrize("name", EXPECTED)
def test_derived_inputs_have_the_shapes_and_capture(tmp_path, name):
    config, shapes = EXPECTED[name]
    model = build(tmp_path, config)
    inputs = derive_inputs(model, Sizes())
    found = {
        key: list(value.shape) if isinstance(value, torch.Tensor) else None
        for key, value in inputs.items()
    }
    assert found == shapes
    assert {value.device.type for value in model.parameters()} == {"meta"}
    denoiser = dqar_fx.transform(model, Schedule.compute_all(2), example_inputs=inputs)
    assert denoiser.table.num_steps == 2


def test_sizes_are_what_the_user_says(tmp_path):
    inputs = derive_inputs(build(tmp_path, FLUX), Sizes(batch=1, size=8, text_tokens=5))
    assert list(inputs["hidden_states"].shape) == [1, 16, 4]
    assert list(inputs["txt_ids"].shape) == [5, 3]
    given = {"guidance": None, "encoder_hidden_states": torch.zeros(1, 9, 24)}
    inputs = derive_inputs(build(tmp_path, FLUX), Sizes(batch=1, size=8, given=given))
    assert "guidance" not in inputs
    assert list(inputs["txt_ids"].shape) == [9, 3]


def test_pixart_of_high_resolution_is_given_sizes(tmp_path):
    model = build(tmp_path, {**PIXART, "use_additional_conditions": True})
    given = derive_inputs(model, Sizes())["added_cond_kwargs"]
    assert list(given["resolution"].shape) == [2, 2]
    assert list(given["aspect_ratio"].shape) == [2, 1]


def test_videos_have_frames_and_two_sides(tmp_path):
    model = build(tmp_path, COGVIDEO)
    inputs = derive_inputs(model, Sizes())
    assert list(inputs["hidden_states"].shape) == [2, 13, 16, 60, 90]
    assert list(inputs["encoder_hidden_states"].shape) == [2, 226, 4096]
    inputs = derive_inputs(model, Sizes(batch=1, size=(8, 12), frames=3))
    assert list(inputs["hidden_states"].shape) == [1, 3, 16, 8, 12]


def test_what_cannot_be_derived_is_asked_for(tmp_path):
    class Unsized(torch.nn.Module):
        def forward(self, hidden_states):
            return hidden_states

    with pytest.raises(CaptureError, match="none of in_channels"):
        derive_inputs(Unsized(), Sizes())
    with pytest.raises(CaptureError, match="'query': no example is known for it"):
        derive_inputs(torch.nn.MultiheadAttention(4, 1), Sizes())
    with pytest.raises(
        CaptureError, match="has no input 'text'; its inputs are hidden_states"
    ):
        derive_inputs(build(tmp_path, DIT), Sizes(given={"text": None}))


def test_sides_are_one_or_two():
    assert (size_of("64"), size_of("60x104")) == (64, (60, 104))


@pytest.mark.parametrize("text", ["", "x", "1", "60x", "60x1", "6x6x6", "-4", "a"])
def test_sides_that_are_none_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a side of at least 2"):
        size_of(text)


@pytest.mark.parametrize("text", ["a", "a=", "a=2x", "a=2:floaty", "2=2", "a=2:nn"])
def test_input_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=SHAPE:DTYPE"):
        input_of(text)


def test_half_precision_leaves_what_must_be_single(tmp_path):
    model = build_model(
        write_config(tmp_path / "config.json", {"_class_name": "WanTransformer3DModel",
                                                 "num_layers": 1}),
        torch.bfloat16,
    )  # fmt: skip
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["scale_shift_table"] == torch.float32
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    inputs = derive_inputs(model, Sizes(size=8, frames=1))
    assert inputs["hidden_states"].dtype == torch.bfloat16


def test_folder_without_weights_is_said(tmp_path):
    write_config(tmp_path / "config.json", DIT)
    with pytest.raises(CaptureError, match="Without --weights the model is built"):
        load_model(str(tmp_path), torch.float32)
