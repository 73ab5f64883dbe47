"""Units: what streams as a whole, one decoder layer each, its tensors gathered by the storages that they lie on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from inference_pio.anatomy.parts import weights_of
from inference_pio.anatomy.roles import roles_of
from inference_pio.streaming.aligned import LINE, part_of, up_to
from inference_pio.undo.awaited import awaited_of
from inference_pio.undo.parked import View, bytes_of, checksum_of
from inference_pio.undo.slots import storage_key, tensors_of

PLAIN = (torch.Tensor, nn.Parameter)


@dataclass
class Region:
    """One storage of a unit: the tensors on it, how they look at it, and where it lies in a slot."""

    tensors: list[torch.Tensor]
    views: list[View]
    nbytes: int
    at: int
    parts: int = 1
    """Stretches of the same length that may be read apart, such as experts."""

    def shown_in(self, slot: torch.Tensor) -> list[torch.Tensor]:
        """The tensors' data as they lie in a slot (flat uint8)."""
        storage = part_of(slot.untyped_storage(), self.at, self.nbytes).untyped_storage()
        return [view.on(storage) for view in self.views]

    def raw(self) -> torch.Tensor:
        """All bytes of the storage, on the host; read from the checkpoint where they are not in memory yet."""
        return bytes_of(self.tensors[0])

    def now_in(self, raw: torch.Tensor) -> None:
        """Its bytes stand elsewhere on the host by now: what was set aside for it while the model loads may go."""
        for tensor in self.tensors:
            if (waiting := awaited_of(tensor)) is not None and not waiting.parts:
                waiting.again = lambda: raw
                waiting.read = lambda target: raw if target is None else target.copy_(raw)

    def fill(self, target: torch.Tensor) -> None:
        """Bring all its bytes to a place on the host."""
        if (waiting := awaited_of(self.tensors[0])) is not None:
            waiting.read(target)
        else:
            target.copy_(self.raw())

    @property
    def sums(self) -> Mapping[tuple[int, int], int]:
        """Checksums of pieces that are known already, by place and length."""
        waiting = awaited_of(self.tensors[0])
        return waiting.sums if waiting is not None else {}

    @property
    def checksum(self) -> int:
        """CRC-32 of all its bytes, which are not read twice for it."""
        waiting = awaited_of(self.tensors[0])
        known = waiting.checksum if waiting is not None else None
        return checksum_of(self.raw()) if known is None else known


@dataclass
class Unit:
    """One decoder layer: `path`, its regions, and the room that they take in a slot."""

    path: str
    regions: list[Region]

    @property
    def room(self) -> int:
        return max((region.at + region.nbytes for region in self.regions), default=0)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [tensor for region in self.regions for tensor in region.tensors]


class Streamable:
    """Which tensors of a model's layers may stream, asked once for all of them; works on a skeleton as well."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places = Counter(id(tensor) for tensor in tensors_of(model))
        self._roles = roles_of(model)
        self._by_storage: dict[int, set[int]] = {}
        for tensor in tensors_of(model):
            self._by_storage.setdefault(storage_key(tensor), set()).add(id(tensor))

    def tensors_in(self, path: str) -> list[torch.Tensor]:
        """The weights of a layer that nothing outside of it shares; adapters, which may learn, stay."""
        places: Counter[int] = Counter()
        found: dict[int, torch.Tensor] = {}
        for name, module in self._model.get_submodule(path).named_modules():
            if self._roles.get(f"{path}.{name}" if name else path) == "adapter":
                continue
            for tensor in weights_of(module).values():
                places[id(tensor)] += 1
                if type(tensor) in PLAIN and tensor.numel():
                    found[id(tensor)] = tensor
        mine = {key for key, count in places.items() if key in found and count == self._places[key]}
        return [
            tensor for key, tensor in found.items() if key in mine and self._by_storage[storage_key(tensor)] <= mine
        ]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors of the model."""
        return sum(tensor.nbytes for tensor in {id(one): one for one in tensors_of(self._model)}.values())

    def nbytes(self, path: str) -> int:
        return sum(tensor.nbytes for tensor in self.tensors_in(path))

    def experts_in(self, path: str) -> int | None:
        """How many experts a module holds, if all that it holds is one slice an expert and may stream; else None."""
        tensors = self.tensors_in(path)
        counts = {tensor.shape[0] if tensor.dim() > 1 and _is_contiguous(tensor) else 0 for tensor in tensors}
        alone = all(_storage_bytes(tensor) == tensor.nbytes for tensor in tensors)
        every = [one for one in weights_of(self._model.get_submodule(path)).values() if one.numel()]
        return counts.pop() or None if len(counts) == 1 and alone and len(every) == len(tensors) else None

    def unit(self, path: str, parts: int = 1) -> Unit:
        """A module's tensors with the places that they will have in a slot, each of them in so many parts."""
        groups: dict[int, list[torch.Tensor]] = {}
        for tensor in self.tensors_in(path):
            groups.setdefault(storage_key(tensor), []).append(tensor)
        regions: list[Region] = []
        end = 0
        for tensors in groups.values():
            at, nbytes = up_to(end, LINE) + _residue(tensors[0]), _storage_bytes(tensors[0])
            regions.append(Region(tensors, [View.of(tensor) for tensor in tensors], nbytes, at, parts))
            end = at + nbytes
        return Unit(path, regions)


def _is_contiguous(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() or awaited_of(tensor) is not None


def _storage_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the storage under a tensor, or of the one that it will have."""
    waiting = awaited_of(tensor)
    return tensor.untyped_storage().nbytes() if waiting is None else waiting.nbytes


def _residue(tensor: torch.Tensor) -> int:
    """Where in a line its storage begins; what is yet to come begins with one."""
    if tensor.is_meta or awaited_of(tensor) is not None:
        return 0
    return tensor.untyped_storage().data_ptr() % LINE
