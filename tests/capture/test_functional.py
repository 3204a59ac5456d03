"""Forwards that write to tensors are captured in functional form, bit for bit."""

import pytest
import torch
from torch import nn

from dqar_fx import CaptureError
from dqar_fx.capture.capture import capture


class Masks(nn.Module):
    """Attention with a mask whose diagonal is filled in a view of it."""

    def __init__(self, shape, *, wrap):
        super().__init__()
        self.qkv, self.shape, self.wrap = nn.Linear(8, 24), shape, wrap

    def forward(self, hidden_states, timestep):
        mask = torch.zeros(*self.shape)
        mask[1:].fill_(-1.0)
        mask[1:].fill_diagonal_(0.5, self.wrap)
        q, k, v = self.qkv(hidden_states).chunk(3, -1)
        scores = nn.functional.scaled_dot_product_attention(q, k, v)
        return (scores + mask.sum()) * timestep[:, None, None]


INPUTS = torch.randn(1, 5, 8), torch.tensor([2.0])


@pytest.mark.parametrize(("shape", "wrap"), [((4, 5), False), ((4, 5), True), ((7, 2), False)])
def test_a_diagonal_that_is_filled_in_a_view_is_captured(shape, wrap):
    model = Masks(shape, wrap=wrap).eval()
    gm = capture(model, INPUTS, {}).gm
    with torch.no_grad():
        assert torch.equal(gm(*INPUTS)[0], model(*INPUTS))


@pytest.mark.parametrize(("shape", "wrap"), [((7, 2), True), ((4, 3, 3), False)])
def test_a_diagonal_of_another_kind_is_refused(shape, wrap):
    with pytest.raises(CaptureError, match="as_strided"):
        capture(Masks(shape, wrap=wrap).eval(), INPUTS, {})
