"""The site is built without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs.pages import PAGES, ROOT

pytestmark = pytest.mark.slow

LOADED = re.compile(r"""<(?:script|img|link rel="stylesheet")[^>]*?(?:src|href)="([^"]*)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_each_page_is_built(site):
    for page in PAGES:
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = LOADED.findall(page.read_text("utf-8"))
        assert loaded, page
        assert not [url for url in loaded if re.match("(https?:)?//", url)], page


def test_rows_are_published_and_code_is_not(site):
    assert (site / "results/main_job.jsonl").exists()
    assert not [path for path in site.rglob("*") if path.suffix in (".py", ".toml")]


def test_macros_are_all_expanded(site):
    for page in site.rglob("*.html"):
        assert "{{" not in page.read_text("utf-8"), page
