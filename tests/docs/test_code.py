"""The code of the README, the pages and the examples runs, and prints what they say."""

from __future__ import annotations

import runpy
from itertools import pairwise

import pytest
from diffusers import DiTPipeline
from markdown_it import MarkdownIt

from tests.docs.pages import PAGES, README, ROOT, name_of

pytestmark = pytest.mark.slow

PIPELINE, RANDOM = ROOT / "examples/pipeline.py", ROOT / "examples/random_weights.py"
SMALL = ROOT / "benchmarks/reference/small"
WITH_CODE = [page for page in PAGES if "```python" in page.read_text("utf-8")]


def blocks_of(page):
    """Fenced blocks of a page, in order."""
    tokens = MarkdownIt().parse(page.read_text("utf-8"))
    return [token for token in tokens if token.type == "fence"]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_of_a_page_runs_and_prints_what_follows(page, capsys, monkeypatch):
    """Blocks share their names; a block of text behind one of code is what that prints."""
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "__main__"}
    for block, behind in pairwise([*blocks_of(page), None]):
        if block.info != "python":
            continue
        source = "\n" * (block.map[0] + 1) + block.content  # errors name the page's line
        exec(compile(source, page, "exec"), namespace)
        printed = capsys.readouterr().out
        if behind is not None and behind.info == "text":
            assert printed == behind.content


def test_readme_has_the_examples():
    random, real = (block.content for block in blocks_of(README) if block.info == "python")
    assert RANDOM.read_text("utf-8").endswith(f'"""\n\n{random}')
    lines = PIPELINE.read_text("utf-8").replace(".to(device)", "").splitlines()
    assert set(real.splitlines()) <= set(lines)


def test_random_weights_print_what_the_readme_says(capsys):
    runpy.run_path(str(RANDOM))
    (said,) = (block.content for block in blocks_of(README) if block.info == "text")
    assert capsys.readouterr().out == said


def test_pipeline_example_draws_pictures(monkeypatch, tmp_path, fresh_counters):
    """With the small reference pipeline, whose label table has as many rows."""
    small = DiTPipeline.from_pretrained(SMALL)
    monkeypatch.setattr(DiTPipeline, "from_pretrained", lambda name: small)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(PIPELINE))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "picture_0.png",
        "picture_1.png",
    ]
    assert small.transformer.table.reuse_ratio == 0.7
