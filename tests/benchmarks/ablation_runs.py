"""What tests of the ablation share: who takes part, and groups that are only noted."""

import torch

from benchmarks.ablation.configurations import BASELINE, FULL, KV, MENDED, QUANT, SCHEDULING
from benchmarks.ablation.generate import Studio
from benchmarks.ablation.rows import Setting
from benchmarks.harness.machine import Machine

MACHINE = Machine("cpu", "AMD EPYC", 2, 2, "2.13", "0.42", "0.1", None, None)
RUN = Setting(
    model="reference/pipeline",
    weights="0" * 16,
    device="cpu",
    dtype="float32",
    lowering="regional",
    steps=50,
    scheduler="ddpm",
    scheduler_class="DDPMScheduler",
    guidance=1.5,
    classes=(0, 1),
    samples=8,
    seed_groups=3,
    first_seeds=(42, 100_042, 200_042),
    frechet_name="FD-FashionCNN",
    lpips_name=None,
    kv_share=0.42,
)
NAMES = [BASELINE, SCHEDULING, QUANT, FULL, KV, MENDED]


def note_groups(monkeypatch):
    """The configurations and groups that are generated from now on; none really is."""
    calls = []

    def note(self, contender, group, bar):
        calls.append((contender.name, group))
        return torch.zeros(self.group_size, 1, 28, 28, dtype=torch.uint8)

    monkeypatch.setattr(Studio, "generate_group", note)
    return calls
