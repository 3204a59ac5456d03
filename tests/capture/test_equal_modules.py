"""Which modules of a model compute the same, each with its own parameters."""

import copy
import enum
import functools
from collections import defaultdict
from itertools import chain

import pytest
import torch
from torch import nn

from dqar_fx.capture.equal_modules import describe_module, find_equal_modules
from tests.helpers.models import MAKERS

EQUAL_MODULES = {
    "dit": [f"transformer_blocks.{i}" for i in range(5)],
    "pixart": [f"transformer_blocks.{i}" for i in range(3)],
    # the first has a second attention, the last leaves the text alone
    "sd3": ["transformer_blocks.1", "transformer_blocks.2"],
    "flux": [
        *(f"transformer_blocks.{i}" for i in range(2)),
        *(f"single_transformer_blocks.{i}" for i in range(3)),
    ],
}


class Processor:
    def __init__(self, scale=1.0):
        self.scale = scale
        self.names = ["q", "k"]


class Block(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("bias", torch.ones(4))
        for name, value in held.items():
            setattr(self, name, value)


class Cyclic:
    def __init__(self):
        self.own = self


class Named(list):
    def __init__(self, values, gain):
        super().__init__(values)
        self.gain = gain


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2

    def __eq__(self, other):  # and no hash
        return self is other


def function():
    return None


@pytest.mark.parametrize("name", MAKERS)
def test_find_equal_modules_finds_the_repeated_blocks_of_a_model(name):
    assert set(EQUAL_MODULES[name]) <= set(chain(*find_equal_modules(MAKERS[name]().model)))


def test_find_equal_modules_goes_into_lists_of_lists():
    model = nn.ModuleList(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2))
    assert find_equal_modules(model) == [["0", "1"], ["0.0", "0.1"], ["1.0", "1.1"]]


def test_find_equal_modules_looks_in_each_list_alone():
    model = nn.ModuleList([nn.ModuleList([nn.ReLU()]), nn.ModuleList([nn.ReLU(), nn.GELU()])])
    assert find_equal_modules(model) == []


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda: {"scale": 0.5, "names": ["a", None], "size": (1, 2)},
        lambda: {"processor": Processor()},
        lambda: {"call": functools.partial(function, 1, a=2)},
        lambda: {"inner": nn.Sequential(nn.Linear(4, 4), nn.ReLU())},
        lambda: {"function": function, "kind": Processor, "seen": {1, 2}},
        lambda: {"cycle": Cyclic()},
        lambda: {"dtype": torch.float32, "device": torch.device("cpu")},
        lambda: {"mode": Mode.FAST, "kinds": defaultdict(int, a=1), "named": Named([1], 2)},
    ],
)
def test_modules_that_hold_equal_things_are_equal(make):
    assert describe_module(Block(**make())) == describe_module(Block(**make()))
    block = Block(**make())
    assert describe_module(block) == describe_module(block)


def test_values_of_parameters_do_not_count():
    one, other = Block(), Block()
    with torch.no_grad():
        other.linear.weight.fill_(3)
        other.bias.fill_(3)
    assert describe_module(one) == describe_module(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"index": 0}, {"index": 1}),
        ({"scale": 1}, {"scale": 1.0}),
        ({"processor": Processor()}, {"processor": Processor(2.0)}),
        ({"inner": nn.Linear(4, 4)}, {"inner": nn.Linear(4, 4, bias=False)}),
        ({"inner": nn.Linear(4, 4)}, {"inner": nn.Linear(4, 4).double()}),
        ({"inner": nn.Linear(4, 4)}, {"inner": nn.Linear(4, 4).requires_grad_(False)}),
        ({"inner": nn.ReLU()}, {"inner": nn.GELU()}),
        ({"inner": nn.Dropout().eval()}, {"inner": nn.Dropout()}),
        ({"call": lambda: 1}, {"call": lambda: 1}),
        ({"table": torch.ones(2)}, {"table": torch.ones(2)}),  # a constant of the graph
        ({"seed": torch.Generator()}, {"seed": torch.Generator()}),
        ({"cycle": Cyclic()}, {"cycle": Processor()}),
        ({"zero": 0.0}, {"zero": -0.0}),
        ({"kinds": Named([1], 2)}, {"kinds": Named([1], 3)}),
        ({"kinds": defaultdict(int)}, {"kinds": defaultdict(float)}),
        ({"outer": [nn.ReLU()]}, {"outer": [nn.ReLU()]}),  # a module that is no part
        ({"mode": Mode.FAST}, {"mode": Mode.SLOW}),
        ({}, {"index": 0}),
    ],
)
def test_modules_that_differ_are_not_equal(one, other):
    assert describe_module(Block(**one)) != describe_module(Block(**other))


def test_a_tied_parameter_is_told_from_two():
    tied, untied = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    tied[1].weight = tied[0].weight
    assert describe_module(tied) != describe_module(untied)
    assert describe_module(tied) == describe_module(copy.deepcopy(tied))


def test_a_hook_makes_a_difference():
    plain, hooked = Block(), Block()
    hooked.register_forward_hook(lambda *_: None)
    assert describe_module(plain) != describe_module(hooked)
