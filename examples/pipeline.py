"""A stock pipeline that reuses its attention: downloads DiT-XL/2, and is meant for a GPU."""

import torch
from diffusers import DiTPipeline

import dqar_fx

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256").to(device)
dqar_fx.enable(pipe, "balanced", compile="regional")
images = pipe([207, 360], num_inference_steps=50).images  # no other line changes
print(dqar_fx.summary(pipe))

for number, image in enumerate(images):
    image.save(f"picture_{number}.png")
