"""A made-up model of errors, and the reference pipeline with few steps."""

from __future__ import annotations

import numpy as np
from diffusers import DiTPipeline

from benchmarks.reference import PIPELINE
from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.optimiser.measurements import Measurements
from tests.helpers.models import make_dit


def reference_pipeline():
    """The reference pipeline, quiet."""
    pipe = DiTPipeline.from_pretrained(PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made_up(num_steps=7, num_sites=4, seed=0, **changes):
    """Sites whose values wander: their inner products, and random factors."""
    rng = np.random.default_rng(seed)
    paths = rng.normal(size=(num_sites, num_steps, 40)).cumsum(axis=1) + 3
    facts = {
        "sites": tuple(f"blocks.{i // 2}.{('attn', 'ff')[i % 2]}" for i in range(num_sites)),
        "kinds": tuple(("self", "feed_forward")[i % 2] for i in range(num_sites)),
        "site_bytes": (100, 200) * (num_sites // 2),
        "gram": np.einsum("sti,sui->stu", paths, paths),
        "sensitivity": rng.uniform(0.1, 1, (num_steps, num_sites)),
        "gain": rng.uniform(0.1, 1, num_steps),
        "step_ms": 10.0,
        "saved_ms": rng.uniform(0.5, 2, num_sites),
        "fingerprint": Fingerprint.of(make_dit(layers=1).model),
    }
    return Measurements(**(facts | changes)), paths
