"""Takes parameters that serve the conditioning alone away while no stage needs them.

Once the conditioning of a trajectory is tabulated, its steps read the table: what made it can
leave the device until another prompt comes. Whole storages go, those that no step of any
captured signature reads; in their place stand NaNs of the same shape that take no memory. The
tensors of the model that the denoiser was made of stay as they are, so that memory falls only
once that model is gone.
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch

from dqar_fx.errors import DqarError
from dqar_fx.notices import Once

from .parameter_bytes import (
    PlannedModel,
    count_parameters,
    step_storages,
    storage_key,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from torch import nn

    from .parameter_bytes import ParameterBytes

    StoredBytes = Callable[[torch.device], torch.Tensor]
    # gives the bytes of a storage, kept in another place, as uint8[bytes] on a device

PLACES = ("host", "disk")
NUM_UNSETTLED = 3
"""Steps in a row that evaluate conditioning after which releasing never seems to come."""


class ReleasingProgram(PlannedModel, Protocol):
    """A program that can let go of the parameters of its conditioning."""

    def forget_conditioning(self) -> None:
        """Hold no parameter of the conditioning in bound calls."""


def write_bytes(file: Any, flat: torch.Tensor) -> StoredBytes:
    """Append bytes to a file, where a page begins.

    Raises:
        DqarError: The file cannot be written.
    """
    try:
        file.seek(0, 2)
        offset = -(-file.tell() // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        file.seek(offset)
        file.write(flat.cpu().numpy().data)
        file.flush()
    except OSError as error:
        raise DqarError(
            f"release='disk': {flat.numel()} bytes of parameters cannot be written to "
            f"{tempfile.gettempdir()} ({error}). Make room there, name another folder in "
            "TMPDIR, or give release='host' or None"
        ) from error
    return partial(load_bytes, file, offset, flat.numel())


def load_bytes(file: Any, offset: int, nbytes: int, device: torch.device) -> torch.Tensor:
    """Give bytes of a file, which is mapped only while they are in use."""
    pages = mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_COPY, offset=offset)
    return torch.frombuffer(pages, dtype=torch.uint8).to(device)


def refuse_dropped(_: torch.device) -> NoReturn:
    """Stand for bytes that were dropped for good.

    Raises:
        DqarError: Always.
    """
    raise DqarError(
        "the parameters of the conditioning were dropped, and this needs them: another "
        "input signature, schedule, device, dtype or copy, or the state. Do so before "
        "drop_conditioning, or transform the model anew"
    )


@dataclass(frozen=True)
class TensorView:
    """Remembers how a tensor showed a storage."""

    tensor: torch.Tensor
    offset: int | torch.SymInt
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorView:
        """Remember a tensor as it is now."""
        return cls(tensor, tensor.storage_offset(), tensor.shape, tensor.stride())

    def vacate(self) -> None:
        """Let the tensor show one number in its shape, NaN where there is one."""
        own = self.tensor
        has_nan = own.is_floating_point() and own.itemsize > 1
        value = torch.full((), torch.nan if has_nan else 0, device=own.device)
        own.data = value.to(own.dtype).expand(self.shape)

    def show(self, storage: torch.UntypedStorage) -> None:
        """Let the tensor show a storage again."""
        own = torch.empty(0, dtype=self.tensor.dtype, device=storage.device)
        self.tensor.data = own.set_(storage, self.offset, self.shape, self.stride)


@dataclass(frozen=True)
class ReleasedStorage:
    """A storage that was released, and what gives its bytes again."""

    load: StoredBytes
    nbytes: int
    device: torch.device
    views: tuple[TensorView, ...]


class Residence:
    """Where the parameters of a denoiser's conditioning are.

    Args:
        place: ``"host"``, ``"disk"``, or None to leave them where they are.

    Attributes:
        place: The same; ``"drop"`` once they are gone for good.
        counted: What `count` found last.
        originals: What the tensors of the original were when the latest run began; None
            before the first.
    """

    def __init__(self, place: str | None = None) -> None:
        self.place = place
        self.counted: ParameterBytes | None = None
        self.originals: Mapping[tuple[str, Hashable], Hashable] | None = None
        self._counted_in: tuple[weakref.ref[ReleasingProgram], ...] | None = None
        self._models = weakref.WeakSet[Any]()
        self._programs = weakref.WeakSet[Any]()
        self._away: list[ReleasedStorage] = []
        self._saved: dict[int, tuple[torch.Tensor, StoredBytes]] = {}
        self._file: Any = None
        self._num_unsettled = 0
        self._once = Once()

    def __reduce__(self) -> tuple[type[Residence], tuple[str | None]]:
        """Let a copy release parameters of its own."""
        return Residence, (self.place,)

    @property
    def released_bytes(self) -> int:
        """What is away from its device now; nothing where ``"host"`` is that device."""
        return sum(
            each.nbytes
            for each in self._away
            if not (self.place == "host" and each.device.type == "cpu")
        )

    @property
    def is_away(self) -> bool:
        """Whether any parameter is away."""
        return bool(self._away)

    def add_model(self, model: nn.Module) -> None:
        """Take care of a model's tensors, too."""
        self._models.add(model)

    def moves(self, model: nn.Module) -> bool:
        """Whether a model's tensors are taken away, too, such as those of another denoiser."""
        return model in self._models

    def add_program(self, program: ReleasingProgram) -> None:
        """Take care of a program's tensors, too."""
        self._programs.add(program)

    def count(
        self, programs: Sequence[ReleasingProgram], model: nn.Module, merged: int
    ) -> ParameterBytes:
        """Count parameters; what is away comes back for a moment, if it was not counted.

        Raises:
            DqarError: They were dropped.
        """
        counted_in = tuple(map(weakref.ref, programs))
        is_known = self.counted is not None and self._counted_in == counted_in
        if self.place == "drop" or not is_known:
            was_away = bool(self._away)
            self.bring_back()
            self._counted_in = counted_in
            self.counted = count_parameters(programs, model, merged)
            if was_away:
                self.release()
        assert self.counted is not None, "set just now, or known"
        return self.counted

    def bring_back(self) -> None:
        """Put back what was released."""
        for away in self._away:
            flat = away.load(away.device)
            storage = flat.untyped_storage()
            for view in away.views:
                view.show(storage)
            self._saved[storage_key(flat)] = (flat, away.load)
        self._away.clear()

    def forget_saved(self) -> None:
        """After values changed: save them anew when next they are released."""
        self.bring_back()
        self._saved.clear()
        self._counted_in = None

    def drop(self) -> None:
        """Release for good what no step reads."""
        self.bring_back()
        self._saved.clear()
        self.place = "drop"
        self.release()

    def release(self, *, is_settled: bool = True) -> None:
        """Release what no step reads; ``is_settled`` unless the next step may need a stage."""
        if self.place is None or self._away:
            return
        if not is_settled:
            self._warn_unsettled()
            return
        self._num_unsettled = 0
        for program in self._programs:
            program.forget_conditioning()
        for tensors in self._groups():
            self._away.append(self._put_away(tensors))
        self._saved.clear()

    def _groups(self) -> list[list[torch.Tensor]]:
        """Group the tensors that no step reads by storage."""
        kept = set(chain.from_iterable(map(step_storages, self._programs)))
        groups: dict[int, list[torch.Tensor]] = defaultdict(list)
        owners = [*self._models, *(program.captured.gm for program in self._programs)]
        found = {id(tensor): tensor for owner in owners for tensor in tensors_of(owner)}
        for tensor in found.values():
            has_bytes = tensor.device.type != "meta" and tensor.untyped_storage().nbytes()
            if has_bytes and storage_key(tensor) not in kept:
                groups[storage_key(tensor)].append(tensor)
        return list(groups.values())

    def _put_away(self, tensors: list[torch.Tensor]) -> ReleasedStorage:
        first = tensors[0]
        storage = first.untyped_storage()
        known = self._saved.pop(storage_key(first), None)
        if known is None:
            flat = torch.empty(0, dtype=torch.uint8, device=first.device).set_(storage)
            saved = self._save(flat)
        else:
            saved = known[1]
        away = ReleasedStorage(
            saved, storage.nbytes(), first.device, tuple(map(TensorView.of, tensors))
        )
        for view in away.views:
            view.vacate()
        return away

    def _save(self, flat: torch.Tensor) -> StoredBytes:
        if self.place == "drop":
            return refuse_dropped
        if self.place == "host":
            if flat.device.type == "cpu":
                self._once.warn(
                    "release='host' frees nothing here: the parameters are in host memory "
                    "already. Expected a denoiser on an accelerator; for one on the CPU give "
                    "release='disk'"
                )
            return flat.cpu().to
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="dqar_fx-")  # noqa: SIM115  # kept open
            weakref.finalize(self, self._file.close)
        return write_bytes(self._file, flat)

    def _warn_unsettled(self) -> None:
        self._num_unsettled += 1
        if self._num_unsettled >= NUM_UNSETTLED:
            self._once.warn(
                f"{NUM_UNSETTLED} steps in a row evaluated conditioning, so that its "
                "parameters are not released. Expected timesteps that are known ahead and "
                "other inputs that stay as they are: pass an element of scheduler.timesteps, "
                "or see Denoiser.attach_scheduler and Denoiser.attach_timesteps"
            )
