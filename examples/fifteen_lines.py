"""A model with random weights that reuses its attention: a second on a CPU, no download."""

import torch
from diffusers import DiTTransformer2DModel

import dqar_fx

model = DiTTransformer2DModel(
    num_attention_heads=4, attention_head_dim=16, num_layers=4, sample_size=8
).eval()
denoiser = dqar_fx.transform(model, dqar_fx.Schedule.linear(12, warmup=3))

latent = torch.randn(2, 4, 8, 8)
for t in torch.linspace(999, 0, 12):
    noise = denoiser(latent, timestep=t.expand(2), class_labels=torch.tensor([1, 7])).sample
    latent = latent - 0.1 * noise
print(denoiser.table)
print(f"{denoiser.cache_bytes} bytes kept")
