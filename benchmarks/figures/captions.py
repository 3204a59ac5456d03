"""The page of captions: one paragraph under each figure."""

from pathlib import Path


def read_captions(page: Path) -> dict[str, str]:
    """Sections of a page of captions by figure; none if there is no page."""
    text = page.read_text() if page.exists() else ""
    sections = (part.partition("\n") for part in f"\n{text}".split("\n## ")[1:])
    return {name.strip(): body.strip() for name, _, body in sections}


def write_captions(captions: dict[str, str], order: tuple[str, ...], page: Path) -> None:
    """Write captions beside those that are on the page from earlier runs."""
    known = read_captions(page) | {
        name: f"![{name}]({name}.png)\n\n{caption}" for name, caption in captions.items()
    }
    sections = [f"## {name}\n\n{known[name]}\n" for name in order if name in known]
    page.write_text("\n".join(["# Figures\n", *sections]))
