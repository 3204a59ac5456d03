"""copy_always copies what is contiguous already, too."""

from __future__ import annotations

from torch import nn

from dqar_fx.passes import copy_always
from tests.helpers.rewrite_checks import (
    captured,
    check_metadata,
    check_rewrite,
    check_twice,
    rewritten,
    tokens,
)


class Turned(nn.Module):
    """A contiguous copy, and values that need none."""

    def forward(self, x):
        return x.transpose(1, 2).contiguous(), x.sin()


def test_copy_always_copies():
    x = tokens()
    gm = captured(Turned(), x)
    ops = {"aten.contiguous.default": -1, "aten.clone.default": 1}
    out = check_rewrite(gm, copy_always, [x], rewrites=1, ops=ops)
    check_metadata(out, [x])
    check_twice(out, copy_always)


def test_copy_always_of_one_sample_has_a_layout_of_its_own():
    x = tokens(3, 4).transpose(0, 1).unsqueeze(1)  # its transpose is contiguous for one row
    out = rewritten(captured(Turned(), tokens(4, 2, 3)), copy_always)
    copied = out(x)[0]
    assert copied.is_contiguous()
    assert copied.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_copy_always_leaves_others():
    class Plain(nn.Module):
        def forward(self, x):
            return (x.sin(),)

    check_rewrite(captured(Plain(), tokens()), copy_always, [tokens()], rewrites=0)
