"""A capture that fails says where in the model."""

import pytest
import torch
from torch import nn

import dqar_fx
from dqar_fx.capture.failures import locate_failure


class Reads(nn.Module):
    """A block that reads a value on the host."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x, timestep):
        if timestep.max().item() > 500:
            x = x * 2
        return self.attention(x, x, x)[0]


class Misfits(nn.Module):
    """A block with a part that cannot take what it is given."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 16)

    def forward(self, x, timestep):
        return self.out(x)


class Model(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.blocks = nn.ModuleList(make() for _ in range(2))

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep)
        return hidden_states


def line_of(kind, number):
    return kind.forward.__code__.co_firstlineno + number


@pytest.mark.parametrize(
    ("kind", "path", "line"), [(Reads, "blocks.0", 1), (Misfits, "blocks.0.out", 1)]
)
def test_a_failure_names_module_file_and_line(kind, path, line):
    schedule = dqar_fx.Schedule.interval(4, 2)
    denoiser = dqar_fx.transform(Model(kind).eval(), schedule, capture="graph")
    place = f"in {path} (test_failures.py:{line_of(kind, line)}, forward)"
    with pytest.raises(dqar_fx.CaptureError) as caught:
        denoiser(torch.randn(1, 5, 16), torch.tensor([900.0]))
    assert place in str(caught.value)


def test_an_error_of_no_module_has_no_place():
    def fail():
        raise KeyError("nothing")

    with pytest.raises(KeyError) as caught:
        fail()
    assert locate_failure(caught.value, Model) == ""
