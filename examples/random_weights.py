"""A stock pipeline with random weights reuses attention: seconds on a CPU, no download."""

from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import dqar_fx

model = DiTTransformer2DModel(
    num_attention_heads=4, attention_head_dim=16, num_layers=4, sample_size=8, out_channels=4
)
pipe = DiTPipeline(model, AutoencoderKL(), DDIMScheduler())

dqar_fx.enable(pipe, "balanced")
images = pipe([1, 7], num_inference_steps=20).images  # no other line changes
print(dqar_fx.summary(pipe))
