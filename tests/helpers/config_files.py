"""Configs of small models in files, and the command run in this process."""

from __future__ import annotations

import json

import pytest

from dqar_fx.command_line import main

DIT = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "in_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
}
DIT_XL = {
    **DIT,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "out_channels": 8,
    "sample_size": 32,
    "num_embeds_ada_norm": 1000,
}
PIXART = {
    "_class_name": "PixArtTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "sample_size": 8,
    "caption_channels": 24,
    "cross_attention_dim": 32,
}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 8,
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 12,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 4, 8),
}
AURA = {
    "_class_name": "AuraFlowTransformer2DModel",
    "sample_size": 8,
    "num_mmdit_layers": 1,
    "num_single_dit_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pos_embed_max_size": 16,
}
SANA = {
    "_class_name": "SanaTransformer2DModel",
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "sample_size": 8,
}
COGVIDEO = {"_class_name": "CogVideoXTransformer3DModel", "num_layers": 1}


def write_config(path, config):
    """The config in a file; its name."""
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """File of the config of a small DiT."""
    return write_config(tmp_path_factory.mktemp("config") / "dit.json", DIT)


def run(capsys, *argv):
    """Exit code, standard output and standard error of the command."""
    try:
        code = main([str(each) for each in argv])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def expect_error(capsys, *argv):
    """The one line that the command says of a wrong input."""
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err
