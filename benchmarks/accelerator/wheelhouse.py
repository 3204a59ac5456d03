"""List what a machine without a network must be given, beside the source tree.

pip resolves what ``pyproject.toml`` asks for as it would on that machine, and installs
nothing. One line for each wheel: its name and version. What the machine has already is left
out, with what only that asks for.

Examples::

    python -m benchmarks.accelerator.wheelhouse --python 3.12
    python -m benchmarks.accelerator.wheelhouse --python 3.12 --extras pipelines peers
    python -m benchmarks.accelerator.wheelhouse --have have.txt    # pip list --format freeze
    pip download --no-deps -r wheels.txt --dest wheels             # then fetches them
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks.harness.errors import InputError
from benchmarks.harness.options import Command, convert_with, default_is, run_command, several
from benchmarks.source_tree import TREE

OLDEST_GLIBC, NEWEST_GLIBC = 5, 28
"""Of version 2, which wheels are built for; pip takes each that is named, no older one."""
CUDA = "nvidia-cuda-runtime"
NAMES = several(convert_with(str, "NAME"), none_allowed=True)


@dataclass(frozen=True)
class Options(Command):
    """Options of this command."""

    COMMAND = "benchmarks.accelerator.wheelhouse"

    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    """Version of the machine's Python."""
    machine: str = "x86_64"
    """Its processor."""
    extras: Annotated[tuple[str, ...], NAMES] = ("pipelines",)
    """Extras of the package that go along."""
    without: Annotated[tuple[str, ...], NAMES] = ()
    """Packages that the machine has in versions of its own, such as torch."""
    have: Annotated[Path | None, default_is("nothing")] = None
    """File that lists what the machine has, a name or name==version a line."""
    index_url: Annotated[str | None, default_is("what pip is set to")] = None
    """Where pip looks, as for a torch of another CUDA version."""
    out: Path = Path("results/wheelhouse")
    """Folder to write to."""


@dataclass(frozen=True)
class Wheel:
    """Something to be carried."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Resolve, print and write."""
    requirements = list_requirements(options.extras)
    there = {
        normalise(name_of(each)) for each in (*options.without, *read_names(options.have))
    }
    wanted = [each for each in requirements if normalise(name_of(each)) not in there]
    report = resolve(wanted, options)
    wheels = list_wheels(report, wanted, there)
    head = describe(wheels, options)
    path = options.out / "wheels.txt"
    path.write_text("\n".join((f"# {head}", *map(str, wheels), "")))
    print(f"{head}:", *wheels, f"wrote {path}", sep="\n")


def list_requirements(extras: Iterable[str]) -> list[str]:
    """What the package asks for, with those extras.

    Raises:
        InputError: There is no such extra.
    """
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    known: Mapping[str, list[str]] = project["optional-dependencies"]
    found, left = list[str](project["dependencies"]), list(extras)
    while left:
        extra = left.pop()
        if extra not in known:
            raise InputError(f"--extras {extra}: there are {', '.join(known)}")
        for each in known[extra]:
            own = re.fullmatch(r"dqar_fx\[(.*)\]", each)
            if own:
                left += own[1].split(",")
            else:
                found.append(each)
    return sorted(set(found))


def resolve(requirements: Sequence[str], options: Options) -> dict[str, Any]:
    """What pip would install there, as its report says.

    Raises:
        InputError: pip finds nothing that fits.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        words = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        words += ["--quiet", "--report", str(path), "--target", folder]
        words += ["--only-binary", ":all:", "--python-version", options.python]
        for platform in list_platforms(options.machine):
            words += ["--platform", platform]
        words += ["--index-url", options.index_url] if options.index_url else []
        ended = subprocess.run([*words, *requirements], capture_output=True, text=True)
        if ended.returncode:
            said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
            raise InputError(f"pip finds nothing that fits: {' '.join(said[-2:])}")
        report: dict[str, Any] = json.loads(path.read_text())
        return report


def list_platforms(machine: str) -> list[str]:
    """Tags of wheels that run on a machine's Linux."""
    names = [f"_2_{n}" for n in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    return [f"manylinux{name}_{machine}" for name in (*names, "2014", "2010", "1")]


def list_wheels(
    report: Mapping[str, Any], wanted: Iterable[str], there: Collection[str]
) -> list[Wheel]:
    """What requirements lead to, but for what is there and what that alone asks for."""
    resolved = {normalise(e["metadata"]["name"]): e["metadata"] for e in report["install"]}
    left, found = [normalise(name_of(each)) for each in wanted], dict[str, Wheel]()
    while left:
        name = left.pop()
        if name in found or name in there or name not in resolved:
            continue  # what is not resolved is for another system, or an extra
        own = resolved[name]
        found[name] = Wheel(own["name"], own["version"])
        left += [normalise(name_of(each)) for each in own.get("requires_dist", ())]
    return [found[name] for name in sorted(found)]


def describe(wheels: Iterable[Wheel], options: Options) -> str:
    """For which Python, processor and CUDA."""
    runtimes = [w.version for w in wheels if normalise(w.name).startswith(CUDA)]
    cuda = f"CUDA {runtimes[0]}" if runtimes else "CUDA as it is there"
    return f"Python {options.python}, {options.machine}, {cuda}"


def read_names(path: Path | None) -> list[str]:
    """Lines of a file that name something.

    Raises:
        InputError: It cannot be read.
    """
    if path is None:
        return []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"--have {path}: {error.strerror}") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def name_of(requirement: str) -> str:
    """The name at the beginning of a requirement."""
    return re.split(r"[\s\[=<>!~;]", requirement, maxsplit=1)[0]


def normalise(name: str) -> str:
    """A name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
