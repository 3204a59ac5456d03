"""Repeated blocks with operators that write: traced once, unless a mark would hide a write."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from dqar_fx.capture import capture as capturing
from dqar_fx.capture.capture import capture
from dqar_fx.passes import expand_repeats
from dqar_fx.passes.support.marks import AGAIN, Mark, find_marks
from tests.helpers.repeated_block_models import WIDTH, Tower, compare, inputs


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Net(nn.Module):
    def __init__(self, kind=Block):
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Rotates(Block):
    """It fills a new tensor, as rotary embeddings do."""

    def forward(self, x):
        y, out = super().forward(x), torch.empty_like(x)
        out[..., 0::2], out[..., 1::2] = y[..., 1::2] - x[..., 0::2], y[..., 0::2]
        return out.type_as(x)


class AddsInPlace(Block):
    def forward(self, x):
        y = super().forward(x)
        y += x
        y[:, 1:].mul_(2)
        return y


class Casts(Block):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.linear(x)
        return x + y.float()


class GivesHalves(Block):
    """Its results are in one memory."""

    def forward(self, x):
        return torch.cat([super().forward(x), x]).chunk(2)


class JoinsHalves(Net):
    def forward(self, x):
        for block in self.blocks:
            y, z = block(x)
            x = y + z
        return x


class WritesToResults(Net):
    def forward(self, x):
        x = x.clone()
        for block in self.blocks:
            y = block(x)
            y += x
            x.mul_(2)
            x = y + x
        return x


class WritesBefore(Tower):
    """It writes to a tensor of its own before and after its blocks."""

    def forward(self, x, context):
        context = context.clone()
        context[0] = 1
        return super().forward(x, context).clone().add_(context)


COPIED = {
    "a tensor is filled": (lambda: Net(Rotates), 2),
    "what is computed is added to": (lambda: Net(AddsInPlace), 2),
    "autocast casts": (lambda: Net(Casts), 2),
    "results are written to": (WritesToResults, 2),
    "results are in one memory": (lambda: JoinsHalves(GivesHalves), 2),
    "a model writes around its blocks": (lambda: WritesBefore([{}] * 3), 2),
}


@pytest.fixture
def copied(monkeypatch):
    """How many blocks each capture copied."""
    counts = []

    def counting(gm):
        marks = [Mark.of(node) for node in find_marks(gm.graph)]
        expand_repeats(gm)
        counts.append(sum(mark.role == AGAIN for mark in marks))

    monkeypatch.setattr(capturing, "AFTER_TRACING", (counting,))
    return counts


@pytest.mark.parametrize("name", COPIED)
def test_blocks_that_write_to_what_is_theirs_are_traced_once(name, copied):
    make, number = COPIED[name]
    model = make().eval()
    given = inputs() if isinstance(model, Tower) else inputs()[:1]
    assert compare(model, given) is not None
    assert copied == [number]


class WritesToGiven(Block):
    def forward(self, x):
        x.mul_(2)
        return super().forward(x)


class WritesToViewOfGiven(Block):
    def forward(self, x):
        x.t()[1:].mul_(2)
        return super().forward(x)


class ReadsWritten(Net):
    def forward(self, x):
        x = x.clone()
        for block in self.blocks:
            x = block(x) + x
        return x


class GivesView(Block):
    def forward(self, x):
        return super().forward(x), x[:1]


class WritesToViewed(Net):
    """What its blocks hand back shows what it writes to afterwards."""

    def forward(self, x):
        x = x.clone()
        for block in self.blocks:
            y, first = block(x)
            x.add_(1)
            x = y + first
        return x


class WritesToHalves(Net):
    def forward(self, x):
        for block in self.blocks:
            y, z = block(x)
            y.mul_(2)
            x = y + z
        return x


class GivesTwice(Block):
    def forward(self, x):
        y = super().forward(x)
        return y, y.t().t()


FALLS_BACK = {
    "a block writes to what it is given": lambda: ReadsWritten(WritesToGiven),
    "a block writes to a view of it": lambda: ReadsWritten(WritesToViewOfGiven),
    "a view of what is given is handed back": lambda: WritesToViewed(GivesView),
    "one of two views is written to": lambda: WritesToHalves(GivesTwice),
}


@pytest.mark.parametrize("name", FALLS_BACK)
def test_a_write_that_a_mark_would_hide_has_all_blocks_traced(name, caplog):
    model, given = FALLS_BACK[name]().eval(), inputs()[:1]
    with caplog.at_level(logging.INFO, "dqar_fx"):
        gm = capture(model, given, {}).gm
    assert "writes to what is on both sides of a mark" in caplog.text
    assert torch.equal(gm(*given)[0], model(*given))
