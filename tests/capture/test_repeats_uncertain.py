"""Models whose repeated blocks are not what they seem: copied rightly, or all are traced."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict

import pytest
import torch
from torch import nn

from tests.helpers.repeated_block_models import WIDTH, compare

STORE: list = []


def linear():
    return nn.Linear(WIDTH, WIDTH)


class Block(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.linear = linear()
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Net(nn.Module):
    """Blocks in a row; ``extra`` are modules beside them."""

    def __init__(self, blocks, extra=()):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.extra = nn.ModuleDict({str(i): each for i, each in enumerate(extra)})

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def three(kind, **held):
    return [kind(**held) for _ in range(3)]


# ---- blocks that read what is not theirs ---------------------------------------------------


class Calls(Block):
    def forward(self, x, f):
        return f(super().forward(x))


class GivesModules(Net):
    """It gives each block a module, in some wrapping."""

    def __init__(self, wrap):
        super().__init__(three(Calls), [linear() for _ in range(3)])
        self.wrap = wrap

    def forward(self, x):
        for block, other in zip(self.blocks, self.extra.values(), strict=True):
            x = block(x, self.wrap(other))
        return x


class ReadsOutside(Block):
    def forward(self, x):
        return self.outer[0](super().forward(x))


def outside():
    others = [linear() for _ in range(3)]
    return Net([ReadsOutside(outer=(each,)) for each in others], others)


class Pair(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return self.other(torch.tanh(self.one(x)))


def shared():
    part = linear()
    return Net([Pair(part, linear()) for _ in range(3)])


def crossed():
    one, other = linear(), linear()
    return Net([Pair(one, other), Pair(other, one)])


# ---- blocks that leave something behind ----------------------------------------------------


class Leaves(Block):
    def forward(self, x):
        y = super().forward(x)
        self.loss = y.mean()
        return y


class SumsLosses(Net):
    def forward(self, x):
        return super().forward(x), sum(block.loss for block in self.blocks)


class Counts(Block):
    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class SumsCalls(Net):
    def forward(self, x):
        return super().forward(x) * sum(block.calls for block in self.blocks)


class Stores(Block):
    def forward(self, x):
        y = super().forward(x)
        STORE.append(y)
        return y


class SumsStore(Net):
    def forward(self, x):
        STORE.clear()
        x = super().forward(x)
        return x, torch.stack(STORE).sum(0)


class Appends(Block):
    def forward(self, x, notes):
        y = super().forward(x)
        notes.append(y)
        return y


class Notes(Net):
    def forward(self, x):
        notes = []
        for block in self.blocks:
            x = block(x, notes)
        return x + sum(notes)


class Pops(Block):
    def forward(self, x, options=None):
        return super().forward(x) * options.pop("scale", 1.0)


class GivesOptions(Net):
    def forward(self, x):
        options = {"scale": 2.0}
        for block in self.blocks:
            x = block(x, options=options)
        return x


# ---- callers that look at blocks and tensors -----------------------------------------------


class LooksAtClass(Net):
    def forward(self, x):
        for block in self.blocks:
            x = block(x) if type(block) is Block else x
        return x


class Shifted(Block):
    def forward(self, x, shift=None):
        return super().forward(x if shift is None else x + shift)


class LooksAtSignature(Net):
    def forward(self, x):
        for block in self.blocks:
            wanted = "shift" in inspect.signature(block.forward).parameters
            x = block(x, **({"shift": x} if wanted else {}))
        return x


class HandsThrough(Block):
    def forward(self, x, context):
        return super().forward(x) + context, context


class LooksAtIdentity(Net):
    def forward(self, x):
        first = context = x * 2
        for block in self.blocks:
            x, context = block(x, context)
        return x + 1 if context is first else x - 1


class Gives(Net):
    """It gives each block the next of some values that it makes of its input."""

    def __init__(self, block, make):
        super().__init__(three(block))
        self.make = make

    def forward(self, x):
        for block, value in zip(self.blocks, self.make(x), strict=True):
            x = block(x, value)
        return x


class LooksAtOffset(Block):
    def forward(self, x, part):
        return super().forward(x) * (part.storage_offset() + 1)


class LooksAtConjugate(Block):
    def forward(self, x, value):
        return super().forward(x * 2 if value.is_conj() else x)


def conjugates(x):
    value = torch.view_as_complex(x.reshape(3, 2, 2))
    return value, value.conj(), value


class LooksAtKeys(Block):
    def forward(self, x, options):
        return super().forward(x) * sum(options)


class LooksAtParameter(Block):
    def forward(self, x, value):
        return super().forward(x) * (2 if isinstance(value, nn.Parameter) else 3)


class ReturnsParameter(Block):
    def forward(self, x):
        return super().forward(x), self.linear.bias


class AddsParameters(Net):
    def forward(self, x):
        for block in self.blocks:
            x, bias = block(x)
            x = x + bias
        return x


class Scaled(Block):
    def forward(self, x):
        return super().forward(x) * self.scales["any"]


# ---- graphs inside of the graph ------------------------------------------------------------


class Around(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = super().forward(x)
        return x.float()


class Inside(Block):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.linear(x)
        return y.float()


ALL_TRACED = {
    "a module in a tuple": outside,
    "a weight tied to what comes first": lambda: tied_before(),
    "parts shared crosswise": crossed,
    "parts shared by all": shared,
    "a loss left behind": lambda: SumsLosses(three(Leaves, loss=0.0)),
    "a count left behind": lambda: SumsCalls(three(Counts, calls=0)),
    "a global store": lambda: SumsStore(three(Stores)),
    "a list appended to": lambda: Notes(three(Appends)),
    "a dict popped from": lambda: GivesOptions(three(Pops)),
    "default values": lambda: Net([Scaled(scales=defaultdict(f)) for f in (int, float, int)]),
    "a parameter returned": lambda: AddsParameters(three(ReturnsParameter)),
}
COPIED = {
    "autocast around": lambda: Around(three(Block)),
    "autocast inside": lambda: Net(three(Inside)),
    "a module given": lambda: GivesModules(lambda module: module),
    "a method given": lambda: GivesModules(lambda module: module.forward),
    "a partial given": lambda: GivesModules(functools.partial),
    "a class looked at": lambda: LooksAtClass(three(Block)),
    "a signature looked at": lambda: LooksAtSignature(three(Shifted)),
    "an identity looked at": lambda: LooksAtIdentity(three(HandsThrough)),
    "an offset looked at": lambda: Gives(LooksAtOffset, lambda x: x[:3].split(1)),
    "a conjugate looked at": lambda: Gives(LooksAtConjugate, conjugates),
    "keys that are equal": lambda: Gives(LooksAtKeys, lambda _: ({1: 0}, {1.0: 0}, {True: 0})),
}


def tied_before():
    model = Net(three(Block), [linear()])
    extra, blocks = model.extra, model.blocks
    extra["0"].weight = blocks[0].linear.weight
    del model.extra, model.blocks
    model.extra, model.blocks = extra, blocks
    return model


@pytest.mark.parametrize("name", ALL_TRACED)
def test_all_blocks_are_traced(name):
    model = ALL_TRACED[name]().eval()
    assert compare(model, (torch.randn(3, WIDTH),)) is None


@pytest.mark.parametrize("name", COPIED)
def test_copies_are_what_the_blocks_would_be(name):
    model = COPIED[name]().eval()
    assert compare(model, (torch.randn(3, WIDTH),)) is not None


def test_a_parameter_given_is_no_plain_tensor():
    class GivesParameter(Net):
        def __init__(self):
            super().__init__(three(LooksAtParameter))
            self.value = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x):
            for block in self.blocks:
                x = block(x, self.value)
            return x

    assert compare(GivesParameter().eval(), (torch.randn(3, WIDTH),)) is not None


def test_copies_are_recorded_inside_of_what_calls_them():
    class Host(Block):
        def forward(self, x, adapter):
            return adapter(super().forward(x))

    class Hosts(nn.Module):
        def __init__(self):
            super().__init__()
            self.hosts = nn.ModuleDict({"one": Host(), "other": Host()})
            self.adapters = nn.ModuleList([Block(), Block()])

        def forward(self, x):
            for host, adapter in zip(self.hosts.values(), self.adapters, strict=True):
                x = host(x, adapter)
            return x

    assert compare(Hosts().eval(), (torch.randn(3, WIDTH),)) is not None
