"""`disk_offloading`: layers that memory has no room for are read from disk just ahead of the computation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from inference_pio.anatomy.layer_lists import listed_layers
from inference_pio.contract.byte_size import bytes_in, shown_bytes
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting
from inference_pio.sources.cache import cache_folder
from inference_pio.streaming.aligned import BLOCK, aligned_bytes
from inference_pio.streaming.hooks import STREAM, Forecast, hang_on, stream_of
from inference_pio.streaming.mapped_files import page_out_mapped
from inference_pio.streaming.memory_limit import memory_limit_bytes
from inference_pio.streaming.origin import Origins, find_origins
from inference_pio.streaming.pieces import PIECE_BYTES, Piece
from inference_pio.streaming.placement import Placement, place
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.stream import Stream
from inference_pio.streaming.units import Region, Streamable, Unit
from inference_pio.undo.parked import Parked, checksum_of
from inference_pio.undo.survey import named_tensors

LAYER = "decoder_layer"
MOST_THREADS = 4


class DiskOffloadingParameters(Settings):
    """How much memory the weights may take: `host_budget` for a model on the CPU, `gpu_budget` for one on a GPU.

    Sizes are bytes, "4GB", "512 MiB", or a share of all weights ("40%"). Without one, `max_memory_ratio` of the memory
    that this process may take (control groups heeded) or of the GPU's is the budget. `folder` is where weights that no
    checkpoint holds are put; `verify` says when checksums are compared; `threads` read.
    """

    host_budget: int | str | None = None
    gpu_budget: int | str | None = None
    max_memory_ratio: float = Field(default=0.9, gt=0, le=1)
    folder: str | None = None
    verify: Literal["first", "always", "size"] = "first"
    threads: int | None = Field(default=None, ge=1, le=64)

    @field_validator("host_budget", "gpu_budget")
    @classmethod
    def _is_a_size(cls, size: int | str | None) -> int | str | None:
        if size is not None:
            try:
                bytes_in(size, 1)
            except InvalidSetting as error:
                raise ValueError(str(error).rstrip(".")) from None
        return size


class DiskOffloading(OptimizationInterface):
    """Layers stay in memory as the budget allows, evenly spread; between them the others come and go in slots."""

    name = "disk_offloading"
    optimization_type = OptimizationType.MEMORY
    stage = Stage.PLACEMENT
    summary = "layers beyond a memory budget are read from disk just ahead of the computation, bit for bit"
    exactness = "exact"
    Parameters: ClassVar[type[Settings]] = DiskOffloadingParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"host_budget": "80%", "threads": 1}

    def sites(self, model: nn.Module) -> Sequence[Site]:
        layers = list(listed_layers(model))
        if not layers:
            return [Site("", skip="it has no list of layers with attention in them")]
        if self.device.type != "cpu":
            return [Site(path, LAYER, skip="models on a GPU do not stream yet") for path, _, _ in layers]
        placed = self._placed(model)
        streamed = set() if isinstance(placed, str) else {placed[0][number] for number in placed[1].streamed}
        sites = []
        for path, _, in_vision in layers:
            why = placed if isinstance(placed, str) else "it stays in memory, which has room for it"
            skip = "the vision tower stays in memory" if in_vision else None if path in streamed else why
            sites.append(Site(path, LAYER, claims=frozenset({"weights.placement"}), skip=skip))
        return sites

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        placed = self._placed(model)
        assert not isinstance(placed, str), "no site acts where nothing can be placed"
        paths, placement = placed
        told = placement.to_json()
        for tier in ("resident", "host", "disk"):
            told[tier] = [paths[number] for number in told[tier]]
        return {"budget_bytes": self._budget(Streamable(model).total_bytes), **told}

    def apply(self, model: nn.Module) -> nn.Module:
        streamable = Streamable(model)
        units = [streamable.unit(site.path) for site in self.step.sites]
        decision = self.step.decision
        if self.step.forecast:
            self._forecast(model, units, decision)
        else:
            self._stream(model, units, decision)
        for note in self._told(units, decision):
            self.say(note=note)
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        stream = stream_of(model)
        return {"streaming": stream.to_json()} if stream is not None else {}

    # ------------------------------------------------------------------ where everything lies

    def _placed(self, model: nn.Module) -> tuple[list[str], Placement] | str:
        """The paths of the layers that may stream, and where each lies; or why all stay where they are."""
        streamable = Streamable(model)
        paths = [path for path, _, in_vision in listed_layers(model) if not in_vision and streamable.nbytes(path)]
        if not paths:
            return "its weights are shared with others, or it has none"
        sizes, total = [streamable.nbytes(path) for path in paths], streamable.total_bytes
        budget = self._budget(total)
        if total <= budget:
            return f"all weights ({shown_bytes(total)}) have room in the budget of {shown_bytes(budget)}"
        found = place(sizes, total - sum(sizes), budget)
        return found if isinstance(found, str) else (paths, found)

    def _budget(self, total_bytes: int) -> int:
        limit, asked = memory_limit_bytes(), self.parameters.host_budget
        wanted = int(limit * self.parameters.max_memory_ratio) if asked is None else bytes_in(asked, total_bytes)
        return min(limit, wanted)

    @property
    def _threads(self) -> int:
        return self.parameters.threads or min(MOST_THREADS, os.cpu_count() or 1)

    # ------------------------------------------------------------------ acting

    def _forecast(self, model: nn.Module, units: Sequence[Unit], decision: Mapping[str, Any]) -> None:
        """On a plan's skeleton: what would be put away, and the slots."""
        for unit in units:
            for region in unit.regions:
                parked = Parked(tuple(region.views), "", _nothing, checksum=0, nbytes=0)
                self.journal.put_away(region.tensors, parked, _rest)
        self.journal.set(model, STREAM, Forecast(decision["slots"] * decision["slot_bytes"]))

    def _stream(self, model: nn.Module, units: Sequence[Unit], decision: Mapping[str, Any]) -> None:
        given = self.parameters.folder
        folder = Path(given).expanduser().absolute() if given else cache_folder() / "offload"
        names = {id(tensor): name for name, tensor in named_tensors(model)}
        origins = find_origins(units, names, self.journal.vault.checkpoint, folder)
        if origins.store is not None:
            self.journal.defer(origins.store.close)
        reader = Reader(self._threads, min(PIECE_BYTES, origins.largest_piece), verify=self.parameters.verify)
        self.journal.defer(reader.close)
        reader.open(origins.files)
        pieces = [origins.pieces_of(number, unit) for number, unit in enumerate(units)]
        stream = Stream(units, pieces, reader, decision["slots"], origins.store)
        self.journal.defer(stream.close)
        ranges = [(one.tensors[0].untyped_storage().data_ptr(), one.nbytes) for unit in units for one in unit.regions]
        for number, unit in enumerate(units):
            for region, own in zip(unit.regions, origins.pieces[number], strict=True):
                self.journal.put_away(region.tensors, _parked(region, own, reader, origins.told), stream.rest)
        page_out_mapped(ranges)
        stream.begin()
        hang_on(self.journal, model, stream)
        self.say(backend=f"{self._threads} threads, {reader.backend}", note=_told_of_origins(origins))

    def _told(self, units: Sequence[Unit], decision: Mapping[str, Any]) -> list[str]:
        every = len(units) + len(decision["resident"])
        notes = [
            f"{len(units)} of {every} layers stream from disk: {shown_bytes(decision['read_bytes_per_pass'])} are read "
            f"for each pass, and {shown_bytes(decision['memory_bytes'])} of weights are in memory "
            f"(budget {shown_bytes(decision['budget_bytes'])}), {decision['slots']} slots of "
            f"{shown_bytes(decision['slot_bytes'])} among them; {self._threads} threads read through "
            f"{shown_bytes(self._threads * (PIECE_BYTES + 2 * BLOCK))} at most beside that.",
        ]
        if decision["slots"] == 1:
            notes.append("the budget has room for one slot, so that a layer is not read while another one streams by.")
        if self.parameters.gpu_budget is not None:
            notes.append("gpu_budget is for models on a GPU: this one is on the CPU, where host_budget counts.")
        return notes


def _parked(region: Region, pieces: Sequence[Piece], reader: Reader, where: str) -> Parked:
    load = partial(_load, pieces, region.nbytes, region.at % BLOCK, reader)
    return Parked(tuple(region.views), where, load, checksum_of(region.raw()), region.nbytes)


def _load(pieces: Sequence[Piece], nbytes: int, residue: int, reader: Reader) -> torch.Tensor:
    """The bytes of a storage, at an address like its first one, so that the same kernels are chosen for it."""
    raw = aligned_bytes(nbytes, residue)
    reader.read_now(pieces, raw)
    return raw


def _told_of_origins(origins: Origins) -> str:
    told = f"{shown_bytes(origins.checkpoint_bytes)} of what streams is read from the model's own files"
    if origins.store is None:
        return f"{told}, and nothing was written"
    written = origins.store.written_bytes
    how = f"written to {origins.store.folder}" if written else f"found in {origins.store.folder}"
    return f"{told}; {shown_bytes(origins.store_bytes)} that no checkpoint holds as they are were {how}"


def _nothing() -> torch.Tensor:
    """What a skeleton's tensors hold."""
    return torch.empty(0, dtype=torch.uint8)


def _rest() -> None:
    """A skeleton never computes."""
