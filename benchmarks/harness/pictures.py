"""A labelled grid of pictures: a row per contender, a column per seed."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

MIN_CELL = 84
GAP = 4
MARGIN = 12
INK, FAINT, PAPER = "#1a1a1a", "#6a6a6a", "#ffffff"


def draw_grid(
    pictures: Sequence[torch.Tensor],
    row_labels: Sequence[tuple[str, str]],
    column_labels: Sequence[tuple[str, str]],
) -> Image.Image:
    """Draw pictures with labels at the left and on top.

    Args:
        pictures: Per row, ``[columns, channels, height, width]`` in [0, 1]; tiny ones are
            enlarged by whole factors.
        row_labels: Two lines each.
        column_labels: Two lines each.
    """
    font = load_font(pictures[0].shape[-1])
    line = round(1.35 * font.size)
    left = (
        MARGIN + max(round(font.getlength(text)) for rows in row_labels for text in rows) + 12
    )
    top = MARGIN + 2 * line + 4
    cells = [[enlarge(to_image(p)) for p in row] for row in pictures]
    width, height = cells[0][0].size
    canvas = Image.new(
        "RGB",
        (
            left + len(column_labels) * (width + GAP) - GAP + MARGIN,
            top + len(cells) * (height + GAP) - GAP + MARGIN,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(column_labels):
        x = left + column * (width + GAP)
        write_lines(draw, (x, MARGIN), [shorten(t, width, font) for t in label], font)
    for row, label in enumerate(row_labels):
        y = top + row * (height + GAP)
        write_lines(draw, (MARGIN, y + (height - 2 * line) // 2), label, font)
        for column, cell in enumerate(cells[row]):
            canvas.paste(cell, (left + column * (width + GAP), y))
    return canvas


def load_font(picture_size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, larger beside larger pictures."""
    font = ImageFont.load_default(size=min(max(13, picture_size // 12), 28))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def to_image(picture: torch.Tensor) -> Image.Image:
    """One picture ``[channels, height, width]`` in [0, 1], grey or colour."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge a tiny image by a whole factor, without smoothing."""
    factor = max(1, -(-MIN_CELL // image.width))
    return image.resize(
        (factor * image.width, factor * image.height), Image.Resampling.NEAREST
    )


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Text that fits, cut with dots if it must be."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def write_lines(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write lines under each other, the first one dark."""
    x, y = corner
    for number, text in enumerate(lines):
        draw.text((x, y), text, fill=FAINT if number else INK, font=font)
        y += round(1.35 * font.size)
