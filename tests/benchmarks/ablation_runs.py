"""What tests of the ablation share: who takes part, and groups that are only noted."""

import torch

from benchmarks.ablation.configurations import BASELINE, FULL, KV, MENDED, QUANT, SCHEDULING
from benchmarks.ablation.generate import Studio

NAMES = [BASELINE, SCHEDULING, QUANT, FULL, KV, MENDED]


def note_groups(monkeypatch):
    """The configurations and groups that are generated from now on; none really is."""
    calls = []

    def note(self, contender, group, bar):
        calls.append((contender.name, group))
        return torch.zeros(self.group_size, 1, 28, 28, dtype=torch.uint8)

    monkeypatch.setattr(Studio, "generate_group", note)
    return calls
