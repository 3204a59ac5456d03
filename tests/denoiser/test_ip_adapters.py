"""Image prompts: IP-Adapters that are put into a denoiser as into its model."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.ip_adapter import FluxIPAdapterMixin
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import make_flux, seeded, settled

EVERY_SECOND = Schedule.interval(4, 2)


def put_adapter(model):
    """Put an adapter of random weights into Flux, as loading one does."""
    torch.manual_seed(3)
    projection = ImageProjection(
        image_embed_dim=8, cross_attention_dim=32, num_image_text_embeds=4
    )
    model.encoder_hid_proj = settled(MultiIPAdapterImageProjection([projection]))
    processors = {
        name: settled(FluxIPAdapterAttnProcessor(32, 32, num_tokens=(4,)))
        if name.startswith("transformer_blocks")
        else FluxAttnProcessor()
        for name in model.attn_processors
    }
    model.set_attn_processor(processors)


def set_scale(model, scale):
    """What a pipeline's ``set_ip_adapter_scale`` does."""
    FluxIPAdapterMixin.set_ip_adapter_scale(SimpleNamespace(transformer=model), scale)


@pytest.mark.parametrize("options", [{}, {"capture": "blocks"}], ids=str)
def test_an_image_prompt_and_its_scale_are_followed(options):
    case = make_flux(batch=1)
    denoiser = dqar_fx.transform(case.model, EVERY_SECOND, **options)
    model = copy.deepcopy(case.model)
    for each in (model, denoiser):
        put_adapter(each)
    image = {"ip_adapter_image_embeds": [seeded(1, 1, 8)]}
    outputs = []
    for scale in (1.0, 0.3, [0.0, 0.7], 1.0):
        for each in (model, denoiser):
            set_scale(each, scale)
        oracle = Oracle(model)
        for step in range(4):
            given = {**case.inputs(step), "joint_attention_kwargs": dict(image)}
            wanted = oracle(EVERY_SECOND.resolve(range(5)).actions[step], **given)
            with torch.no_grad():
                found = denoiser(**given).sample
            assert torch.equal(found, wanted)
        outputs.append(found)
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])
    assert len(denoiser.captured_programs()) == 3  # a scale is a number of the forward
