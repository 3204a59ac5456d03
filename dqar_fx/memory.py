"""The memory of a denoiser, planned before anything runs.

Slots, conditioning and parameters are exact: they equal the storages that are held.
Activations are an estimate, as `activations` says.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from .activations import Activations
from .errors import DqarError
from .weights import ParameterBytes, count_parameters

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .program import Program

MAX_SITES = 12
"""Sites that are printed; JSON has all of them."""


@dataclass(frozen=True)
class StreamMemory:
    """What one stream holds, in bytes.

    Attributes:
        name: ``"every stream"``, or ``"conditional"`` and ``"unconditional"`` of guidance.
        sites: Per site that is ever kept, its buffers; 0 where it uses those of others.
        saved: What sites that share buffers would take beyond that.
        output: Kept of the whole output, and held for it (guidance).
        table: Conditioning of all steps of a trajectory; 0 where it is evaluated per step.
        constant: Conditioning that does not read the timestep.
    """

    name: str
    sites: dict[str, int]
    saved: int
    output: int
    table: int
    constant: int

    @property
    def slots(self) -> int:
        """All that is allocated for kept outputs."""
        return sum(self.sites.values()) + self.output

    @property
    def total(self) -> int:
        """All that is held between steps."""
        return self.slots + self.table + self.constant


@dataclass(frozen=True)
class MemoryPlan:
    """What a denoiser holds, in bytes, for the latest captured signature.

    A pipeline that calls several streams that the denoiser does not tell apart beforehand
    holds the first of ``streams`` once for each.

    Attributes:
        streams: By stream.
        parameters: By what they serve; of all captured signatures.
        released: Of these, what leaves the device while steps run.
        activations: Of a step, at most: an estimate, for eager mode.
    """

    streams: tuple[StreamMemory, ...]
    parameters: ParameterBytes
    released: int
    activations: int

    @property
    def slots(self) -> int:
        """Kept outputs of all streams."""
        return sum(stream.slots for stream in self.streams)

    @property
    def conditioning(self) -> int:
        """Conditioning of all streams that is kept between steps."""
        return sum(stream.table + stream.constant for stream in self.streams)

    @property
    def kept(self) -> int:
        """Parameters on the device while steps run."""
        return self.parameters.total - self.released

    @property
    def held(self) -> int:
        """All that is held between steps; exact."""
        return self.slots + self.conditioning + self.kept

    @property
    def peak(self) -> int:
        """Most that is held within a step; an estimate."""
        return self.held + self.activations

    def to_json(self) -> str:
        """All of it, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MemoryPlan:
        """Read what `to_json` wrote.

        Raises:
            DqarError: It is something else.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DqarError(
                f"this is no memory plan in JSON: {type(error).__name__}: {error}. Expected "
                "what MemoryPlan.to_json() gives"
            ) from error

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> MemoryPlan:
        """Read what ``dataclasses.asdict`` gave."""
        return cls(
            streams=tuple(StreamMemory(**stream) for stream in content["streams"]),
            parameters=ParameterBytes(**content["parameters"]),
            released=content["released"],
            activations=content["activations"],
        )

    def __str__(self) -> str:
        given = self.parameters
        rows: list[tuple[str, int]] = [("parameters of the step", given.step)]
        rows.append(("parameters of conditioning alone", given.conditioning))
        rows.append(("parameters that nothing reads", given.unused))
        rows.append(("  released while steps run", -self.released))
        for stream in self.streams:
            rows += rows_of(stream)
        rows.append(("held between steps", self.held))
        rows.append(("activations of a step, estimated", self.activations))
        rows.append(("peak, estimated", self.peak))
        shown = [{"memory": name, "MB": f"{size / 1e6:.3f}"} for name, size in rows if size]
        merged = f"; {given.merged / 1e6:.3f} MB merged" if given.merged else ""
        table = tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True)
        return f"{table}\nparameters {given.total / 1e6:.3f} MB{merged}"


def rows_of(stream: StreamMemory) -> list[tuple[str, int]]:
    """The lines of a stream: its sites by size, and the rest."""
    sites = [(f"slots of {path}", size) for path, size in stream.sites.items() if size]
    left = sites[MAX_SITES:]
    if left:
        count = f"slots of {len(left)} sites more"
        sites = [*sites[:MAX_SITES], (count, sum(size for _, size in left))]
    rest = [
        ("  saved by sharing slots", -stream.saved),
        ("kept of the whole output", stream.output),
        ("conditioning of all steps", stream.table),
        ("conditioning that is constant", stream.constant),
    ]
    return [(f"{name} ({stream.name})", size) for name, size in (*sites, *rest)]


def plan_memory(denoiser: Denoiser, activations: Activations | None = None) -> MemoryPlan:
    """The memory of a denoiser, for its latest captured signature.

    Args:
        denoiser: Captured already.
        activations: Of its plan, where something was measured already.

    Raises:
        DqarError: Nothing has been captured yet.
    """
    program = denoiser.program
    activations = activations or Activations(program)
    programs = {"every stream": program}
    if hasattr(denoiser, "guidance"):
        programs = {"conditional": program, "unconditional": denoiser.unconditional}
    output = denoiser.cache_bytes - sum(each.cache_bytes for each in programs.values())
    parameters, released = count_resident(denoiser)
    last = next(reversed(programs))
    return MemoryPlan(
        streams=tuple(
            plan_stream(name, each, activations, output if name == last else 0)
            for name, each in programs.items()
        ),
        parameters=parameters,
        released=released,
        activations=max(map(activations.of_program, programs.values()))
        + (len(programs) - 1) * 4 * activations.output_bytes,
    )


def count_resident(denoiser: Denoiser) -> tuple[ParameterBytes, int]:
    """Bytes of parameters, and of those that leave the device while steps run."""
    place = denoiser.release_place
    if place == "drop":  # gone for good: what is left stands in their place
        return count_parameters([denoiser.program], denoiser.model), 0
    parameters = denoiser.parameter_bytes
    stays = place is None or (place == "host" and denoiser.device.type == "cpu")
    return parameters, 0 if stays else parameters.released


def plan_stream(
    name: str, program: Program, activations: Activations, output: int
) -> StreamMemory:
    """The memory of the stream that runs a program."""
    sites = dict.fromkeys((program.table.sites[key[0]] for key in program.slot_specs), 0)
    for key, spec in program.buffer_specs.items():
        sites[program.table.sites[key[0]]] += spec.nbytes
    apart = sum(spec.nbytes for spec in program.slot_specs.values())
    return StreamMemory(
        name=name,
        sites=sites,
        saved=apart - program.cache_bytes,
        output=output,
        table=program.table_bytes,
        constant=activations.constant_bytes(program),
    )
