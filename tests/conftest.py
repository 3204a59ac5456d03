"""Threads, garbage collection, and what is collected.

With several workers each takes one core: more threads than cores make all of them slow. Tests
in a browser are collected where one is installed, and the end of the run says if none is.
"""

from __future__ import annotations

import gc
import os

import pytest
import torch
from torch._dynamo.utils import counters

from dqar_fx.builder import tiers
from tests.helpers.headless_browser import find_browser

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

# Captures and compilations make millions of objects that live on: looking through them after
# each 700 new ones, as Python does by default, takes an eighth of the time of all tests.
gc.set_threshold(100_000, 20, 100)

IN_BROWSER = "inspect/html/test_in_browser.py"
collect_ignore = [] if find_browser() else [IN_BROWSER]


@pytest.fixture
def fresh_counters():
    """Nothing is compiled yet, and nothing counted."""
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def captures(monkeypatch):
    """The models that were captured."""
    made, capture = [], tiers.capture

    def note(model, *inputs, **options):
        made.append(model)
        return capture(model, *inputs, **options)

    monkeypatch.setattr(tiers, "capture", note)
    return made


def pytest_terminal_summary(terminalreporter):
    """Say which tests were left out, and what they need."""
    if collect_ignore:
        terminalreporter.write_line(
            f"tests/{IN_BROWSER} was left out: it needs Chromium and its driver "
            "(Debian: apt install chromium chromium-driver)",
            yellow=True,
        )
