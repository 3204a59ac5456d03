"""The memory of a denoiser, planned before anything runs.

Slots, conditioning and parameters are exact: they equal the storages that are held.
Activations are an estimate, as `activations` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate

from dqar_fx.conditioning.parameter_bytes import ParameterBytes
from dqar_fx.guidance.guided import GuidedDenoiser
from dqar_fx.json_value import JsonValue
from dqar_fx.plan.unlowered import UnloweredRegions
from dqar_fx.program.packing_plan import count_packed

from .activations import Activations

if TYPE_CHECKING:
    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.program.program import Program

MAX_SITES = 12
"""Most sites that are printed; JSON has all of them."""
RELEASED = {
    "host": "of these in host memory while steps run",
    "disk": "of these on disk while steps run",
    "drop": "of these dropped",
}
"""What is said of parameters, by the place where they are."""


@dataclass(frozen=True)
class MemoryLine:
    """A part of a memory plan.

    Attributes:
        name: What the part is.
        nbytes: Bytes that it takes; negative if they are saved.
        stream: Name of the stream that takes them; empty for all streams together.
        is_sum: Whether it is what lines before it add up to.
    """

    name: str
    nbytes: int
    stream: str = ""
    is_sum: bool = False

    @property
    def named(self) -> str:
        """Its name, with that of its stream."""
        return f"{self.name} ({self.stream})" if self.stream else self.name


@dataclass(frozen=True)
class StreamMemory:
    """What one stream holds, in bytes.

    Attributes:
        name: ``"every stream"``, or ``"conditional"`` and ``"unconditional"`` of guidance.
        sites: Bytes of the buffers of each site that is ever kept; 0 where it uses those of
            others.
        saved: Bytes that sites which share buffers would take beyond that.
        output: Bytes that are kept of the whole output, and held for it (guidance).
        table: Bytes of the conditioning of all steps of a trajectory; 0 where it is evaluated
            per step.
        constant: Bytes of the conditioning that does not read the timestep.
    """

    name: str
    sites: dict[str, int]
    saved: int
    output: int
    table: int
    constant: int

    @property
    def slots(self) -> int:
        """Bytes of all that is allocated for kept outputs."""
        return sum(self.sites.values()) + self.output


@dataclass(frozen=True)
class MemoryPlan(JsonValue):
    """What a denoiser holds, in bytes, for the latest captured signature.

    A pipeline that calls several streams that the denoiser does not tell apart beforehand
    holds the first of ``streams`` once for each.

    Attributes:
        streams: What each stream holds.
        parameters: Bytes of parameters by what they serve, of all captured signatures.
        place: Where parameters of the conditioning are while steps run: ``"host"`` or
            ``"disk"``; ``"drop"`` if they are gone for good, None if they stay.
        released: Bytes of parameters that leave the device for that place.
        fixed: Bytes of tables of labels and timesteps in the place of dropped parameters.
        activations: Most bytes of a step's activations: an estimate, for eager mode.
        packed: Bytes of copies of weights that are packed (``compile={"prepack": True}``), of
            all captured signatures.
    """

    streams: tuple[StreamMemory, ...]
    parameters: ParameterBytes
    place: str | None
    released: int
    fixed: int
    activations: int
    packed: int = 0

    @property
    def slots(self) -> int:
        """Bytes of the kept outputs of all streams."""
        return sum(stream.slots for stream in self.streams)

    @property
    def conditioning(self) -> int:
        """Bytes of the conditioning of all streams that is kept between steps."""
        return self.fixed + sum(stream.table + stream.constant for stream in self.streams)

    @property
    def kept(self) -> int:
        """Bytes of parameters on the device while steps run."""
        return self.parameters.total - self.released

    @property
    def held(self) -> int:
        """Bytes of all that is held between steps; exact."""
        return self.slots + self.conditioning + self.kept + self.packed

    @property
    def peak(self) -> int:
        """Most bytes that are held within a step; an estimate."""
        return self.held + self.activations

    def lines(self, max_sites: int = MAX_SITES) -> list[MemoryLine]:
        """List all parts that take or save memory, and what they add up to.

        Args:
            max_sites: Most sites of a stream that have a line of their own.
        """
        given = self.parameters
        found = [
            MemoryLine("parameters of the step", given.step),
            MemoryLine("parameters of conditioning alone", given.conditioning),
            MemoryLine("parameters that nothing reads", given.unused),
            MemoryLine(RELEASED.get(self.place or "", ""), -self.released),
            *(line for stream in self.streams for line in lines_of(stream, max_sites)),
            MemoryLine("conditioning of fixed labels", self.fixed),
            MemoryLine("packed copies of weights", self.packed),
            MemoryLine("held between steps", self.held, is_sum=True),
            MemoryLine("activations of a step, estimated", self.activations),
            MemoryLine("peak, estimated", self.peak, is_sum=True),
        ]
        return [line for line in found if line.nbytes]

    def __str__(self) -> str:
        shown = [
            {"memory": line.named, "MB": f"{line.nbytes / 1e6:.3f}"} for line in self.lines()
        ]
        table = tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True)
        return f"{table}\n{self.summary}"

    @property
    def summary(self) -> str:
        """All parameters, and what takes no memory since something else has it already."""
        saved = [
            (self.parameters.merged, "merged, since equal to others"),
            (sum(stream.saved for stream in self.streams), "saved by sharing slots"),
        ]
        parts = [f"{size / 1e6:.3f} MB {name}" for size, name in saved if size]
        return "; ".join([f"parameters {self.parameters.total / 1e6:.3f} MB", *parts])


def lines_of(stream: StreamMemory, max_sites: int) -> list[MemoryLine]:
    """List the lines of a stream: its sites in order, and the rest."""
    sites = [(f"slots of {path}", size) for path, size in stream.sites.items() if size]
    left = sites[max_sites:]
    if left:
        count = f"slots of {len(left)} sites{' more' if max_sites else ''}"
        sites = [*sites[:max_sites], (count, sum(size for _, size in left))]
    rest = [
        ("kept of the whole output", stream.output),
        ("conditioning of all steps", stream.table),
        ("conditioning that is constant", stream.constant),
    ]
    return [MemoryLine(name, size, stream.name) for name, size in (*sites, *rest)]


def plan_memory(denoiser: Denoiser, activations: Activations | None = None) -> MemoryPlan:
    """Plan the memory of a denoiser, for its latest captured signature.

    Raises:
        DqarError: Nothing has been captured yet.
    """
    program = denoiser.program
    activations = activations or Activations(program, UnloweredRegions())
    programs = {"every stream": program}
    if isinstance(denoiser, GuidedDenoiser):
        programs = {"conditional": program, "unconditional": denoiser.unconditional}
    output = denoiser.cache_bytes - sum(each.cache_bytes for each in programs.values())
    place, parameters = denoiser.residence.place, count_held(denoiser)
    stays = place is None or (place == "host" and denoiser.device.type == "cpu")
    fixed = {id(each.fixed): each.fixed for each in programs.values() if each.fixed}
    last = next(reversed(programs))
    return MemoryPlan(
        streams=tuple(
            plan_stream(name, each, activations, output if name == last else 0)
            for name, each in programs.items()
        ),
        parameters=parameters,
        place=place,
        released=0 if stays else parameters.released,
        fixed=sum(table.held_bytes for table in fixed.values()),
        activations=max(map(activations.of_program, programs.values()))
        + (len(programs) - 1) * 4 * activations.output_bytes,
        packed=count_packed(denoiser.captured_programs()),
    )


def count_held(denoiser: Denoiser) -> ParameterBytes:
    """Count bytes of parameters, those included that were dropped."""
    counted = denoiser.residence.counted
    if denoiser.residence.place == "drop":
        assert counted is not None, "counted before they were dropped"
        return counted
    return denoiser.parameter_bytes


def plan_stream(
    name: str, program: Program, activations: Activations, output: int
) -> StreamMemory:
    """Plan the memory of a stream that keeps ``output`` bytes of its whole output."""
    sites = dict.fromkeys((program.table.sites[key[0]] for key in program.slot_specs), 0)
    for key, spec in program.buffer_specs.items():
        sites[program.table.sites[key[0]]] += spec.nbytes
    apart = sum(spec.nbytes for spec in program.slot_specs.values())
    fixed = program.fixed
    return StreamMemory(
        name=name,
        sites=sites,
        saved=apart - program.cache_bytes,
        output=output,
        table=0 if fixed else program.table_bytes,
        constant=count_places(program) if fixed else activations.constant_bytes(program),
    )


def count_places(program: Program) -> int:
    """Count the bytes of the labels' places in the tables of fixed labels."""
    assert program.fixed is not None, "asked by the caller"
    labels = program.captured.gm.graph.find_nodes(op="placeholder")[program.fixed.leaf]
    num_labels: int = labels.meta["val"].numel()
    return num_labels * torch.long.itemsize
