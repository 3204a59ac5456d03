"""The grid of pictures: sizes, colours, labels that fit."""

import pytest
import torch

from benchmarks.harness.pictures import (
    MIN_CELL,
    draw_grid,
    enlarge,
    load_font,
    shorten,
    to_image,
)


@pytest.mark.parametrize(
    ("channels", "size", "cell"), [(1, 28, 84), (3, 28, 84), (3, 50, 100), (3, 256, 256)]
)
def test_draw_grid_enlarges_by_whole_factors(channels, size, cell):
    pictures = [torch.rand(3, channels, size, size) for _ in range(2)]
    grid = draw_grid(pictures, [("a", "b")] * 2, [("c", "d")] * 3)
    assert 3 * cell < grid.width < 3 * cell + 200
    assert 2 * cell < grid.height < 2 * cell + 150


def test_to_image_keeps_grey_and_colour():
    grey = to_image(torch.full((1, 2, 2), 0.5))
    red = to_image(torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 2, 2))
    assert grey.getpixel((0, 0)) == (128, 128, 128)
    assert red.getpixel((1, 1)) == (255, 0, 0)


def test_enlarge_repeats_pixels():
    picture = torch.tensor([[[0.0, 1.0]]]).expand(1, 2, 2)
    large = enlarge(to_image(picture))
    assert large.width == MIN_CELL
    assert {large.getpixel((x, 0))[0] for x in range(MIN_CELL)} == {0, 255}


def test_shorten_cuts_with_dots():
    font = load_font(28)
    assert shorten("Bag", 84, font) == "Bag"
    short = shorten("great white shark, man-eater", 84, font)
    assert short.endswith("...")
    assert font.getlength(short) <= 84
