"""The package from a source tree, without installation: ``dqar_fx.passes`` is in ``passes/``.

An installation knows this by the mapping in ``pyproject.toml``. Where there is none, as on a
machine that a source tree was carried to, this finder is asked last, and tells.
"""

import importlib.metadata
import sys
import tomllib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

TREE = Path(__file__).resolve().parents[1]
MAPPED = "dqar_fx.passes"


class SourceTreeFinder:
    """Finds the package whose folder is elsewhere than its name says."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where that package is; None for every other name."""
        del path, target
        folder = TREE / "passes"
        if name != MAPPED or not folder.is_dir():
            return None
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def find_mapped_package() -> None:
    """Let imports find it where nobody else does; a second call changes nothing."""
    if SourceTreeFinder not in sys.meta_path:
        sys.meta_path.append(SourceTreeFinder)


def find_version() -> str:
    """The version of dqar_fx: of what is installed, else of the source tree."""
    try:
        return importlib.metadata.version("dqar_fx")
    except importlib.metadata.PackageNotFoundError:
        return str(tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["version"])
