"""One stock pipeline of the test bench: how it is made, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Stock:
    """A pipeline of tiny random components, and one request to it.

    Args:
        name: The pipeline and what is asked of it, such as ``"SD3, img2img"``.
        make: Gives a new pipeline on each call, always with the same weights. They are large
            enough that attention matters. Text encoders, tokenizers and, where the pipeline
            allows it, the VAE are left out.
        call: One request: the pipeline and a seed, of which the latents and the prompt
            embeddings are drawn; gives the final latents.
        denoisers: Attributes of the pipeline that hold its denoisers.
    """

    name: str
    make: Callable[[], DiffusionPipeline]
    call: Callable[[DiffusionPipeline, int], torch.Tensor]
    denoisers: tuple[str, ...] = ("transformer",)
