"""Options of a command: one frozen dataclass, whose fields are read by tyro.

A field's name is the option's, its annotation says what is accepted, its default is the
option's, and the text below it is its help. The description and the examples that ``--help``
prints are the docstring of the module that defines the class.
"""

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import torch
import tyro

from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import can_compile
from dqar_fx import DqarError

Lowering = Literal["regional", "whole", "eager"]
Flag = tyro.conf.FlagCreatePairsOff[bool]
"""A switch without its opposite: ``--quick``, or ``--no-even`` where the default is true."""


def as_compile(lowering: str) -> str | None:
    """What ``transform(compile=)`` is given for a lowering."""
    return None if lowering == "eager" else lowering


def convert_with(
    convert: Callable[[str], Any], metavar: str
) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """How one word becomes a value; ``convert`` raises ValueError for a wrong one."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: convert(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def several(
    kind: tyro.constructors.PrimitiveConstructorSpec[Any],
    metavar: str | None = None,
    *,
    none_allowed: bool = False,
) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """How several words become a tuple, at least one word unless none are allowed."""
    name = metavar or kind.metavar

    def convert(words: list[str]) -> tuple[Any, ...]:
        if not words and not none_allowed:
            raise ValueError("expected at least one argument")
        return tuple(kind.instance_from_str([word]) for word in words)

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{name} ...]" if none_allowed else f"{name} [{name} ...]",
        instance_from_str=convert,
        is_instance=lambda value: True,
        str_from_instance=lambda values: [str(value) for value in values or ()],
    )


def at_least(minimum: int) -> tyro.constructors.PrimitiveConstructorSpec[int]:
    """An integer that is not below ``minimum``."""
    return number(int, lambda value: value >= minimum, f"an integer of at least {minimum}")


def above(minimum: float) -> tyro.constructors.PrimitiveConstructorSpec[float]:
    """A finite number above ``minimum``."""
    return number(
        float, lambda value: minimum < value < float("inf"), f"a number above {minimum:g}"
    )


def number(
    kind: type, is_right: Callable[[Any], bool], expected: str
) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """A number of a kind for which a condition holds."""

    def convert(word: str) -> Any:
        try:
            value = kind(word)
        except ValueError:
            value = None
        if value is None or not is_right(value):
            raise ValueError(f"expected {expected}, found {word!r}")
        return value

    return convert_with(convert, kind.__name__.upper())


def one_of(choices: Sequence[str]) -> tyro.constructors.PrimitiveConstructorSpec[str]:
    """One of some names."""

    def convert(word: str) -> str:
        if word not in choices:
            raise ValueError(f"invalid choice {word!r}; choose from {', '.join(choices)}")
        return word

    return convert_with(convert, f"{{{','.join(choices)}}}")


def device_of(text: str) -> torch.device:
    """A device that can be used here.

    Raises:
        ValueError: It cannot.
    """
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot use device {text!r}: {reason}") from None
    if device.type == "meta":
        raise ValueError("device 'meta' computes nothing; try cpu")
    return device


def folder_to_write(text: str | Path) -> Path:
    """A folder that exists or can be made; it is there when this returns.

    Raises:
        InputError: It cannot be made or written to.
    """
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(text)!r}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to {str(text)!r}: no permission")
    return folder


def folder_to_keep(text: str) -> Path:
    """A folder with a calibration, or one to write it to.

    Raises:
        InputError: It can be neither.
    """
    folder = Path(text)
    return folder if (folder / "calibration.json").exists() else folder_to_write(text)


def default_is(words: str, **keywords: Any) -> Any:
    """What ``--help`` says of a default that is None; other keywords are `tyro.conf.arg`'s."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {words})", **keywords)


Count = Annotated[int, at_least(1)]
Counts = Annotated[tuple[int, ...], several(at_least(1), "N")]
Patterns = Annotated[tuple[str, ...], several(convert_with(str, "PATTERN"))]
"""Names, or patterns of names as of a shell."""
Folder = Annotated[Path, convert_with(folder_to_write, "FOLDER")]


def quick_flag(defaults: Mapping[str, object]) -> Any:
    """The annotation of a field ``quick``, whose help lists the other defaults."""
    told = ", ".join(f"{name} {show_words(value)}" for name, value in defaults.items())
    return Annotated[Flag, tyro.conf.arg(help=f"Other defaults: {told}.")]


def show_words(value: object) -> str:
    """A value as it is written on a command line."""
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Command:
    """The options of a command; a subclass adds a field for each.

    Attributes:
        COMMAND: What stands behind ``python -m``.
        QUICK: Defaults of a run that only shows that the command works; with them goes a field
            ``quick: quick_flag(QUICK) = False``.
    """

    COMMAND: ClassVar[str]
    QUICK: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def read(cls, argv: Sequence[str] | None = None) -> Self:
        """Read a command line; None takes that of the process.

        A wrong option is printed, and ends the process with code 2.

        Raises:
            InputError: Options do not go together, or cannot be used here.
        """
        options = cls._parse(argv, cls())
        if cls.QUICK and options.quick:
            options = cls._parse(argv, cls(**cls.QUICK))
        if hasattr(options, "out"):
            folder_to_write(options.out)  # also the default, which nothing has converted
        return options.settle()

    @classmethod
    def _parse(cls, argv: Sequence[str] | None, default: Self) -> Self:
        text = inspect.getdoc(sys.modules[cls.__module__]) or ""
        return tyro.cli(
            cls,
            prog=f"python -m {cls.COMMAND}",
            description=text.replace("::\n\n", ":\n"),
            args=argv,
            default=default,
        )

    def settle(self) -> Self:
        """Check options against each other, and fill in what follows from others.

        A subclass that has something to add calls this one first.

        Raises:
            InputError: They do not go together, or cannot be used here.
        """
        return self


@dataclass(frozen=True)
class CpuOptions(Command):
    """Options of what runs on the CPU.

    Attributes:
        WHY_COMPILER: What is said where there is no compiler; nothing where none is needed.
    """

    WHY_COMPILER: ClassVar[str] = ""

    threads: Annotated[int | None, at_least(1), default_is("PyTorch's")] = None
    """CPU threads."""

    def settle(self) -> Self:
        """The same, if there is a compiler where one is needed; sets the threads."""
        if self.WHY_COMPILER and not can_compile(torch.device("cpu")):
            raise InputError(f"no C++ compiler was found, and {self.WHY_COMPILER}")
        if self.threads:
            torch.set_num_threads(self.threads)
        return super().settle()


Options = TypeVar("Options", bound=Command)


def run_command(
    kind: type[Options],
    run: Callable[[Options], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Read a command line and run.

    Returns:
        The exit code: that of ``run`` or 0; 2 for input that cannot be used, 130 if
        interrupted.
    """
    try:
        return run(kind.read(argv)) or 0
    except (InputError, DqarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
