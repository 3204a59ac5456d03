"""The reference pipeline: a class-conditional latent DiT on Fashion-MNIST, and its training.

The folder ``pipeline`` is a diffusers folder, which ``DiTPipeline.from_pretrained(PIPELINE)``
loads without a network. The modules beside it train such a folder from nothing::

    python -m benchmarks.reference.train_vae
    python -m benchmarks.reference.train_transformer
    python -m benchmarks.reference.assemble
    python -m benchmarks.reference.train_classifier
"""

from pathlib import Path

PIPELINE = Path(__file__).resolve().parent / "pipeline"
"""The shipped pipeline folder, to be given to ``DiTPipeline.from_pretrained``."""
SMALL = PIPELINE.with_name("small")
"""A second one of another shape: half the blocks, width 96 of 3 heads, the same VAE."""
OUT = Path("results/reference")
"""The folder of a run, which all scripts share by default."""
