"""Benchmarks from a source tree that nobody installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from benchmarks import source_tree
from benchmarks.source_tree import TREE, SourceTreeFinder, find_mapped_package, find_version

CODE = """
import sys
sys.path[:] = [p for p in sys.path if "__editable__" not in p]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
import benchmarks
import dqar_fx.passes
from benchmarks.harness.machine import describe_machine
import torch
print(dqar_fx.__file__, dqar_fx.passes.__file__, describe_machine(torch.device("cpu")).dqar_fx)
"""


@pytest.mark.slow
def test_the_mapped_package_is_found_where_nobody_else_finds_it(tmp_path):
    """Of a copy of the tree, by an interpreter that knows of no installation."""
    for name in ("benchmarks", "dqar_fx", "passes"):
        ignored = shutil.ignore_patterns("*.safetensors", "__pycache__", "*.png")
        shutil.copytree(TREE / name, tmp_path / name, ignore=ignored)
    shutil.copy(TREE / "pyproject.toml", tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    package, passes, version = ended.stdout.splitlines()[-1].split()
    assert Path(package).parent == tmp_path / "dqar_fx"
    assert Path(passes).parent == tmp_path / "passes"
    assert version == find_version()


def test_nothing_else_is_found():
    assert SourceTreeFinder.find_spec("dqar_fx.nothing") is None
    find_mapped_package()
    assert sys.meta_path.count(SourceTreeFinder) == 1


def test_version_of_a_tree_is_that_of_its_project(monkeypatch):
    def fail(name):
        raise PackageNotFoundError(name)

    installed = find_version()
    monkeypatch.setattr(source_tree.importlib.metadata, "version", fail)
    assert find_version() == installed
