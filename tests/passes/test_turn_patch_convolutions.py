"""turn_patch_convolutions turns convolutions over separate patches, and nothing else."""

from __future__ import annotations

import pytest
from torch import nn

from dqar_fx.passes import turn_patch_convolutions
from tests.helpers.rewrite_checks import (
    captured,
    captured_dit,
    check_metadata,
    check_rewrite,
    check_twice,
    rewritten,
    tokens,
)

CLOSE = 1e-5
OPS = {
    "aten.conv2d.default": -1,
    "aten.reshape.default": 3,
    "aten.permute.default": 2,
    "aten.linear.default": 1,
    "aten.contiguous.default": 1,
}


class Patches(nn.Module):
    """A convolution of an image, read twice."""

    def __init__(self, *sizes, **options):
        super().__init__()
        self.proj = nn.Conv2d(*sizes, **options)

    def forward(self, x):
        y = self.proj(x)
        return y.flatten(2).transpose(1, 2), y + 1


TURNED = {
    "square": ((4, 12, 2), {"stride": 2}),
    "oblong": ((4, 12, (2, 3)), {"stride": (2, 3)}),
    "one pixel": ((4, 12, 1), {}),
    "without bias": ((4, 12, 3), {"stride": 3, "bias": False}),
}


@pytest.mark.parametrize("name", TURNED)
def test_turn_patch_convolutions_turned(name):
    sizes, options = TURNED[name]
    x = tokens(2, 4, 6, 12)
    gm = captured(Patches(*sizes, **options), x)
    out = check_rewrite(gm, turn_patch_convolutions, [x], rewrites=1, ops=OPS, relative=CLOSE)
    check_metadata(out, [x])
    check_twice(out, turn_patch_convolutions)


LEFT = {
    "overlap": ((4, 12, 3), {"stride": 2}),
    "gaps": ((4, 12, 2), {"stride": 3}),
    "padding": ((4, 12, 2), {"stride": 2, "padding": 1}),
    "dilation": ((4, 12, 2), {"stride": 2, "dilation": 2}),
    "groups": ((4, 12, 2), {"stride": 2, "groups": 2}),
    "no whole number": ((4, 12, 5), {"stride": 5}),
}


@pytest.mark.parametrize("name", LEFT)
def test_turn_patch_convolutions_leaves_others(name):
    sizes, options = LEFT[name]
    x = tokens(2, 4, 6, 12)
    check_rewrite(
        captured(Patches(*sizes, **options), x), turn_patch_convolutions, [x], rewrites=0
    )


def test_turn_patch_convolutions_of_dit():
    gm, inputs = captured_dit()
    out = check_rewrite(gm, turn_patch_convolutions, inputs, rewrites=1, relative=CLOSE)
    check_metadata(rewritten(out), inputs)
