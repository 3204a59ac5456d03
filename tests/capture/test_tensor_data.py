"""Forwards that use `.data`, make constants, and keep tensors: captured, bit for bit."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import dqar_fx
from dqar_fx.capture.capture import capture
from dqar_fx.capture.tensor_data import without_kept_results
from dqar_fx.passes.support.graphs import source_line

LENGTH, WIDTH = 5, 8


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Positions(nn.Module):
    """Adds positions to what it is given; each subclass makes them in its own way."""

    def __init__(self, layers):
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(layers))
        self.kept, self.table = None, {}

    def forward(self, hidden_states, timestep):
        x = self.add(hidden_states) * timestep[:, None, None]
        for block in self.blocks:
            x = x + block(x)
        return x


def rising(length):
    return torch.arange(float(length))[:, None].sin() * torch.ones(WIDTH)


class WritesThroughData(Positions):
    def add(self, x):
        joint = x.new_zeros(1, 1 + x.shape[1], WIDTH)
        joint.data[:, 1:].copy_(rising(x.shape[1]))
        return x + joint[:, 1:]


class ReadsData(Positions):
    def add(self, x):
        return x.data + rising(x.shape[1]).data


class ReadsDataOfParameters(Positions):
    def add(self, x):
        return x + torch.cat([self.blocks[0].qkv.weight.data] * 2)[3]


class MakesConstants(Positions):
    def add(self, x):
        ramp = torch.tensor([float(i) for i in range(WIDTH)])
        return x * ramp + torch.as_tensor([1.0] * WIDTH) + torch.arange(WIDTH)


class KeepsAttribute(Positions):
    def add(self, x):
        if self.kept is None or len(self.kept) != x.shape[1]:
            self.kept = rising(x.shape[1])
        return x + self.kept


class KeepsPair(Positions):
    def add(self, x):
        if self.kept is None or self.kept[0] != x.shape[1]:
            self.kept = (x.shape[1], rising(x.shape[1]))
        return x + self.kept[1]


class KeepsTable(Positions):
    def add(self, x):
        if x.shape[1] not in self.table:
            self.table[x.shape[1]] = rising(x.shape[1])
        return x + self.table[x.shape[1]]


class KeepsByMethod(Positions):
    @functools.lru_cache(maxsize=None)  # noqa: B019, UP033  # as some models do
    def rising(self, length):
        return rising(length)

    def add(self, x):
        return x + self.rising(x.shape[1])


@functools.lru_cache(maxsize=None)  # noqa: UP033  # as some models do
def kept_rising(length):
    return rising(length)


class KeepsByFunction(Positions):
    def add(self, x):
        return x + kept_rising(x.shape[1])


BESIDE: dict = {}


class KeepsBeside(Positions):
    def add(self, x):
        if x.shape[1] not in BESIDE:
            BESIDE[x.shape[1]] = rising(x.shape[1])
        return x + BESIDE[x.shape[1]]


def inputs(length=LENGTH):
    generator = torch.Generator().manual_seed(length)
    return torch.randn(2, length, WIDTH, generator=generator), torch.tensor([1.0, 0.5])


@pytest.mark.parametrize("kind", Positions.__subclasses__())
def test_what_a_forward_makes_is_captured_and_the_model_keeps_nothing_of_it(kind):
    BESIDE.clear()
    model = kind(2).eval()
    for length in (LENGTH, LENGTH + 2):  # where one left something, the next would find it
        gm = capture(model, inputs(length), {}).gm
        assert (model.kept, model.table) == (None, {})
        with torch.no_grad():
            (found,), expected = gm(*inputs(length)), model(*inputs(length))
        assert torch.equal(found, expected)
        model.kept, model.table = None, {}


def test_a_denoiser_follows_what_a_forward_makes_at_each_size():
    model = WritesThroughData(1).eval()
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(4, 2))
    for length in (LENGTH, LENGTH + 2, LENGTH):
        denoiser.reset()
        with torch.no_grad():
            assert torch.equal(denoiser(*inputs(length)), model(*inputs(length)))


def test_what_was_kept_of_no_capture_stays():
    BESIDE.clear()
    BESIDE["own"] = kept = torch.ones(1)
    with without_kept_results(KeepsBeside(1)):
        BESIDE["other"] = [torch.ones(2)]
    assert BESIDE.keys() == {"own", "other"}
    assert BESIDE.pop("own") is kept


class SetsData(Positions):
    def add(self, x):
        positions = torch.ones_like(x[0])
        positions.data = rising(x.shape[1])
        return x + positions


class RegistersBuffer(Positions):
    def add(self, x):
        self.register_buffer("positions", rising(x.shape[1]))
        return x + self.positions


REFUSED = {SetsData: "x.data = y", RegistersBuffer: r"registers buffers \['positions'\]"}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_export_would_get_wrong_in_silence_is_refused(kind):
    with pytest.raises(dqar_fx.CaptureError, match=REFUSED[kind]):
        capture(kind(2).eval(), inputs(), {})


def test_source_lines_are_the_models():
    gm = capture(WritesThroughData(3).eval(), inputs(), {}).gm
    files = {source_line(node).split(":")[0] for node in gm.graph.nodes}
    assert "test_tensor_data.py" in files
    assert "tensor_data.py" not in files
