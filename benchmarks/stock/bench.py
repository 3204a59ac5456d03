"""All stock pipelines of the bench."""

from __future__ import annotations

from benchmarks.stock import (
    audio,
    aura_flow,
    chroma,
    dit,
    flux,
    flux2,
    forcing,
    hunyuan_dit,
    lumina,
    more,
    pixart,
    qwen_image,
    sana,
    sd3,
    sdxl,
    video,
    wan,
    z_image,
)

STOCK = (
    *dit.STOCK,
    *pixart.STOCK,
    *sd3.STOCK,
    *flux.STOCK,
    *flux2.STOCK,
    *qwen_image.STOCK,
    *z_image.STOCK,
    *sana.STOCK,
    *aura_flow.STOCK,
    *lumina.STOCK,
    *chroma.STOCK,
    *hunyuan_dit.STOCK,
    *sdxl.STOCK,
    *more.STOCK,
    *video.STOCK,
    *wan.STOCK,
    *forcing.STOCK,
    *audio.STOCK,
)
