"""All stock pipelines of the bench."""

from __future__ import annotations

from benchmarks.stock import dit, flux, flux2, pixart, qwen_image, sd3, z_image

STOCK = (
    *dit.STOCK,
    *pixart.STOCK,
    *sd3.STOCK,
    *flux.STOCK,
    *flux2.STOCK,
    *qwen_image.STOCK,
    *z_image.STOCK,
)
