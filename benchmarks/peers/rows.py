"""Rows: what was measured of one contender, as one line of JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from benchmarks.pareto import rows as pareto
from benchmarks.pareto.contenders import EAGER
from benchmarks.pareto.records import Record
from benchmarks.peers.recipes import STOCK, Peer
from benchmarks.quality.judge import Judge

SAME_ERROR = 1e-5
"""Relative error below which latents are the same but for how a compiler rounds."""


@dataclass(frozen=True)
class Row(pareto.Row):
    """One contender, in a process of its own with the unit.

    Attributes:
        table: What is equal for those that follow one branch table.
        compile_s: Time of the first trajectory, with an empty Inductor cache, less that of a
            later one; None where nothing was captured or compiled.
        first_peak_bytes: The highest memory up to the end of the first trajectory above that
            before the contender was built: what compiles is in it.
        later_peak_bytes: The same in the second trajectory.
        cache_bytes: What the cache holds at most after a step; None for no cache.
        relative_error: Norm of the final latent's difference from the untransformed eager
            model's by the norm of that; None where there are pictures.
    """

    table: str | None = None
    compile_s: float | None = None
    first_peak_bytes: int | None = None
    later_peak_bytes: int | None = None
    cache_bytes: int | None = None
    relative_error: float | None = None


def make_rows(
    peers: Sequence[Peer],
    records: Mapping[str, Record],
    judge: Judge | None,
    run: Mapping[str, Any],
) -> list[Row]:
    """Rows of those that ran; the first is the base, and there is an eager one of it.

    Args:
        peers: Who takes part.
        records: What is on disk of each, by name.
        judge: Of pictures; None for latents.
        run: What all rows share.
    """
    base = with_macs(peers[0], peers, records)
    eager = next(e for e in peers if e.family == peers[0].family and e.mode == EAGER)
    rows = []
    for peer in peers:
        record = with_macs(peer, peers, records)
        if not record.facts:
            continue  # has not run yet
        rows.append(make_row(peer, record, base, records[eager.name], judge, run))
    return rows


def make_row(
    peer: Peer,
    record: Record,
    base: Record,
    reference: Record,
    judge: Judge | None,
    run: Mapping[str, Any],
) -> Row:
    """The row of one contender."""
    pictures = Record(reference.piece) if judge is None else reference
    row = pareto.make_row(peer, record, base, pictures, judge or Judge(), run)
    facts, error = record.facts, None
    if judge is None and record.error is None:
        error = measure_error(record, reference)
    taken = [field.name for field in fields(row) if field.name != "note"]
    names = ("first_peak_bytes", "later_peak_bytes", "cache_bytes")
    return Row(
        **{name: getattr(row, name) for name in taken},
        note=row.note or find_oddity(peer, facts, error),
        table=peer.table,
        compile_s=find_compile_s(peer, record),
        relative_error=error,
        **{name: facts.get(name) for name in names},
    )


def with_macs(peer: Peer, peers: Sequence[Peer], records: Mapping[str, Record]) -> Record:
    """A record with its multiply-accumulates, which the eager mode of a setting has.

    Fewer steps of the untransformed model have as many less.
    """
    own = records[peer.name]
    setting = "untransformed" if peer.family.kind == "fewer" else peer.setting
    modes = (each for each in peers if each.setting == setting and each.mode in (EAGER, STOCK))
    counted = next(modes, None)
    macs = None if counted is None else records[counted.name].facts.get("macs")
    if not own.facts or macs is None or counted is None:
        return own
    facts = {**own.facts, "macs": round(macs * peer.steps / counted.steps)}
    return replace(own, facts=facts)


def find_compile_s(peer: Peer, record: Record) -> float | None:
    """What building and compiling took; None if nothing was, or not from cold."""
    own_s = [own for _, own in record.times.values()]
    if not own_s or not record.facts.get("is_built") or peer.family.kind == "fewer":
        return None
    return max(0.0, float(record.facts["warmup_s"]) - statistics.median(own_s))


def measure_error(record: Record, reference: Record) -> float | None:
    """Relative error over all latents that both have; None without any."""
    numbers = sorted({*record.images} & {*reference.images})
    if not numbers:
        return None
    own, other = (
        torch.cat([each.images[n] for n in numbers]).double() for each in (record, reference)
    )
    return float((own - other).norm() / other.norm())


def find_oddity(peer: Peer, facts: Mapping[str, Any], error: float | None) -> str | None:
    """That a cache was attached and does nothing: its latents are those of the full run."""
    if peer.family.kind in ("base", "fewer") or error is None or error > SAME_ERROR:
        return None
    hooked = facts.get("hooked")
    where = "" if hooked is None else f" ({hooked} modules have a hook)"
    return f"is attached without an error, but reuses nothing{where}"
