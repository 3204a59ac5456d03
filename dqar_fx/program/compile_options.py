"""How to lower: the ``compile`` argument of ``transform``, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dqar_fx.errors import OptionError, check_known

from .backends import BACKENDS, REPLAYING_MODES, UNITS, Backend, Eager


@dataclass(frozen=True)
class CompileOptions:
    """How regions are lowered.

    Attributes:
        backend: What runs regions.
        dynamic: Whether what is compiled serves all sizes: True, or ``"auto"`` from the
            second size on.
        prepack: Whether linears of a step take weights that are packed once.
        disable: Names of passes that are left out.
    """

    backend: Backend = field(default_factory=Eager)
    dynamic: bool | str = False
    prepack: bool = False
    disable: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, compile: str | Mapping[str, Any] | None, disable: tuple[str, ...] = ()
    ) -> CompileOptions:
        """Read the ``compile`` argument of ``transform``; passes to ``disable`` are checked.

        Raises:
            OptionError: An unknown unit, or no unit at all; ``dynamic`` or ``prepack`` where
                nothing is compiled, with each other, or neither true nor false; ``dynamic``
                with CUDA graphs.
        """
        if compile is None or isinstance(compile, str):
            unit, keywords = compile, dict[str, Any]()
        elif isinstance(compile, Mapping):
            keywords = dict(compile)
            unit = keywords.pop("unit", "regional")
        else:
            units = ", ".join(map(repr, UNITS))
            raise OptionError(
                f"compile={compile!r}: expected None, {units}, or a dict of torch.compile "
                "keywords with an optional 'unit'"
            )
        what = "compile=" if unit is compile else "the 'unit' of compile="
        check_known(what, unit, (None, *UNITS))
        dynamic = keywords.get("dynamic")
        if dynamic not in (None, True, False, "auto"):
            raise OptionError(
                f"compile={{'dynamic': {dynamic!r}}}: expected True, so that all sizes share "
                "what is compiled, 'auto', so that all but the first do, or False or None, as "
                "for torch.compile"
            )
        is_dynamic = bool(dynamic)
        if is_dynamic:
            del keywords["dynamic"]
        prepack = read_prepack(keywords)
        backend = Eager() if unit is None else BACKENDS[unit](keywords)
        options = cls(backend, dynamic or False, prepack, disable)
        if is_dynamic:
            options.refuse_fixed_sizes(dynamic, keywords)
        if prepack:
            options.refuse_packed()
        try:
            backend.check()
        except Exception as error:
            said = (str(error).strip().splitlines() or ["nothing"])[0].rstrip(".")
            raise OptionError(
                f"compile={compile!r}: torch.compile does not take that: "
                f"{type(error).__name__}: {said}. Expected keywords of torch.compile, and of "
                "dqar_fx 'unit', 'dynamic' and 'prepack'"
            ) from error
        return options

    def refuse_fixed_sizes(self, dynamic: object, keywords: Mapping[str, Any]) -> None:
        """Raise for options that fix sizes where these should be dynamic."""
        if not self.backend.is_compiled:
            raise OptionError(
                f"compile={{'unit': None, 'dynamic': {dynamic!r}}}: nothing is compiled, so "
                f"nothing can serve several sizes. Expected a unit of {UNITS}; without one, "
                "leave 'dynamic' out: all sizes share a capture anyway"
            )
        if self.backend.replays:
            raise OptionError(
                f"compile={dict(keywords)} with 'dynamic': {dynamic!r}: a CUDA graph is "
                "recorded for tensors of fixed sizes. Expected one of the two: leave "
                "'dynamic' out, so that each size is compiled; or leave CUDA graphs out "
                f"(modes {REPLAYING_MODES}, option 'triton.cudagraphs')"
            )
        if "shapes_spec" in keywords:
            raise OptionError(
                f"compile has both 'dynamic': {dynamic!r} and 'shapes_spec', but which "
                "dimensions are dynamic follows from the captures. Leave 'shapes_spec' out"
            )

    def refuse_packed(self) -> None:
        """Raise for options under which no weight can be packed."""
        if not self.backend.is_compiled:
            raise OptionError(
                "compile={'unit': None, 'prepack': True}: products by packed weights round "
                "differently, but what is not compiled is bit for bit the original's. "
                f"Expected a unit of {UNITS}; without one, leave 'prepack' out"
            )
        if self.dynamic:
            raise OptionError(
                f"compile has both 'prepack' and 'dynamic': {self.dynamic!r}, but what is "
                "compiled for all sizes takes weights as they are. Expected one of the two"
            )


def read_prepack(keywords: dict[str, Any]) -> bool:
    """Take ``prepack`` out of the keywords.

    Raises:
        OptionError: It is neither true nor false.
    """
    prepack = keywords.pop("prepack", False)
    if not isinstance(prepack, bool):
        raise OptionError(
            f"compile={{'prepack': {prepack!r}}}: expected True, so that linears on a CPU "
            "take weights that are packed once, or False"
        )
    return prepack
