"""`disk_offloading`: layers that memory has no room for are read from disk just ahead of the computation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from inference_pio.anatomy.layer_lists import listed_layers
from inference_pio.contract.byte_size import bytes_in, in_words
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting
from inference_pio.sources.cache import cache_folder
from inference_pio.streaming.aligned import BLOCK
from inference_pio.streaming.build import How, foretell, put_on_stream
from inference_pio.streaming.expert_room import most_slots, room_bytes
from inference_pio.streaming.expert_stream import memory_of, most_kept
from inference_pio.streaming.experts import Experts, slots_told
from inference_pio.streaming.hooks import stream_of
from inference_pio.streaming.memory_limit import memory_limit_bytes
from inference_pio.streaming.pieces import PIECE_BYTES
from inference_pio.streaming.placement import Placement, place
from inference_pio.streaming.units import Streamable, Unit

LAYER = "decoder_layer"
MOST_THREADS = 4


class DiskOffloadingParameters(Settings):
    """How much memory the weights may take: `host_budget` for a model on the CPU, `gpu_budget` for one on a GPU.

    Sizes are bytes, "4GB", "512 MiB", or a share of all weights ("40%"). Without one, `max_memory_ratio` of the memory
    that this process may take (control groups heeded) or of the GPU's is the budget. `folder` is where weights that no
    checkpoint holds are put; `verify` says when checksums are compared; `threads` read. `expert_slots`: experts of a
    model on a GPU come one by one, those that are chosen, in place of with their layers.
    """

    host_budget: int | str | None = None
    gpu_budget: int | str | None = None
    max_memory_ratio: float = Field(default=0.9, gt=0, le=1)
    folder: str | None = None
    verify: Literal["first", "always", "size"] = "first"
    threads: int | None = Field(default=None, ge=1, le=64)
    expert_slots: bool = True

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
    weights_read = "none"  # what streams is read as it is put away, unit by unit
    Parameters: ClassVar[type[Settings]] = DiskOffloadingParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"host_budget": "80%", "threads": 1}
    beside_the_host: ClassVar[frozenset[str]] = frozenset({"cuda"})
    """Kinds of devices whose memory is not the host's."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        layers = list(listed_layers(model))
        if not layers:
            return [Site("", skip="it has no list of layers with attention in them")]
        if self.device.type not in ("cpu", "cuda"):
            return [Site(path, LAYER, skip=f"layers do not stream to {self.device.type}") for path, _, _ in layers]
        if (apart := self._experts_apart(model)) is not None:
            claims = frozenset({"weights.placement"})
            return [Site(path, "experts", claims=claims) for path in apart["experts"]]
        placed = self._placed(model)
        streamed = set() if isinstance(placed, str) else {placed[0][number] for number in placed[1].streamed}
        sites = []
        for path, _, in_vision in layers:
            why = placed if isinstance(placed, str) else "it stays in memory, which has room for it"
            skip = "the vision tower stays in memory" if in_vision else None if path in streamed else why
            sites.append(Site(path, LAYER, claims=frozenset({"weights.placement"}), skip=skip))
        return sites

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        if (apart := self._experts_apart(model)) is not None:
            return apart
        placed = self._placed(model)
        assert not isinstance(placed, str), "no site acts where nothing can be placed"
        paths, placement = placed
        told = placement.to_json()
        for tier in ("resident", "host", "disk"):
            told[tier] = [paths[number] for number in told[tier]]
        told["streaming_bytes"] = placement.slots * placement.slot_bytes
        why = self._why_whole(model)
        whole = {"experts_whole": why} if why is not None else {}
        return {"budget_bytes": self._budget(Streamable(model).total_bytes), **told, **whole}

    def apply(self, model: nn.Module) -> nn.Module:
        streamable = Streamable(model)
        decision = self.step.decision
        parts = decision.get("experts", {})
        units = [streamable.unit(site.path, parts.get(site.path, 1)) for site in self.step.sites]
        if self.step.forecast:
            foretell(self.journal, model, units, decision["streaming_bytes"])
        else:
            how = How(self._folder, self._threads, self.parameters.verify)
            slots = next(decision[one] for one in ("slots_per_layer", "kept_per_layer", "slots") if one in decision)
            backend, note = put_on_stream(self.journal, model, units, decision.get("host", ()), slots, how)
            self.say(backend=backend, note=note)
        for note in (*self._told(units, decision), *self._without_effect(decision)):
            self.say(note=note)
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        stream = stream_of(model)
        return {"streaming": stream.to_json()} if stream is not None else {}

    # ------------------------------------------------------------------ where everything lies

    def _experts_apart(self, model: nn.Module) -> dict[str, Any] | None:
        """Where experts alone stream, one by one, and all else has room: how many of a layer stay. None elsewhere."""
        experts = Experts.of(model)
        budget = self._budget(experts.total_bytes)
        if not experts.found or experts.total_bytes <= budget:
            return None
        slots = self._slots(experts, budget) if self._beside_the_host else self._kept(experts, budget)
        if slots is None:
            return None
        memory = experts.total_bytes - experts.nbytes + slots["streaming_bytes"]
        return {
            "budget_bytes": budget, "experts": experts.found, **slots,
            "memory_bytes": memory, "expert_bytes": max(experts.each),
        }  # fmt: skip

    def _kept(self, experts: Experts, budget: int) -> dict[str, Any] | None:
        kept = most_kept(experts.each, experts.counts, budget - (experts.total_bytes - experts.nbytes))
        if not kept:
            return None
        return {"kept_per_layer": kept, "streaming_bytes": memory_of(experts.each, experts.counts, kept)}

    def _slots(self, experts: Experts, budget: int) -> dict[str, Any] | None:
        """For a device with memory of its own: slots there, all experts in the host's."""
        if not self.parameters.expert_slots:
            return None
        slots = most_slots(experts.each, experts.counts, budget - (experts.total_bytes - experts.nbytes))
        waiting = self._waiting_room(experts.total_bytes)
        if not slots or not experts.lie_evenly or waiting is None or experts.nbytes > waiting:
            return None
        return {
            "slots_per_layer": slots, "streaming_bytes": room_bytes(experts.each, experts.counts, slots),
            "host": list(experts.found), "host_bytes": experts.nbytes, "chosen_per_token": experts.chosen,
        }  # fmt: skip

    def _why_whole(self, model: nn.Module) -> str | None:
        """Why experts stream with their layers, all of them, on a device that could have them one by one."""
        experts = Experts.of(model)
        if not experts.found or not self._beside_the_host:
            return None
        if not self.parameters.expert_slots:
            return "expert_slots=false was asked for"
        if not experts.lie_evenly:
            return "an expert does not begin at a multiple of 16 bytes, so that another kernel might serve it elsewhere"
        waiting = self._waiting_room(experts.total_bytes) or 0
        if experts.nbytes > waiting:
            return f"all experts ({in_words(experts.nbytes)}) must wait on the host, where {in_words(waiting)} are free"
        least = experts.total_bytes - experts.nbytes + room_bytes(experts.each, experts.counts, 1)
        return f"all that is no expert, one slot a layer and room for one layer's experts take {in_words(least)}"

    @property
    def _beside_the_host(self) -> bool:
        return self.device.type in self.beside_the_host

    def _placed(self, model: nn.Module) -> tuple[list[str], Placement] | str:
        """The paths of the layers that may stream, and where each lies; or why all stay where they are."""
        streamable = Streamable(model)
        paths = [path for path, _, in_vision in listed_layers(model) if not in_vision and streamable.nbytes(path)]
        if not paths:
            return "its weights are shared with others, or it has none"
        sizes, total = [streamable.nbytes(path) for path in paths], streamable.total_bytes
        budget = self._budget(total)
        if total <= budget:
            return f"all weights ({in_words(total)}) have room in the budget of {in_words(budget)}"
        found = place(sizes, total - sum(sizes), budget, self._waiting_room(total))
        return found if isinstance(found, str) else (paths, found)

    def _budget(self, total_bytes: int) -> int:
        """Memory of the model's device that its weights may take."""
        if not self._beside_the_host:
            return self._within(memory_limit_bytes(), self.parameters.host_budget, total_bytes)
        on_gpu = self.device.type == "cuda"
        limit = torch.cuda.get_device_properties(self.device).total_memory if on_gpu else memory_limit_bytes()
        return self._within(limit, self.parameters.gpu_budget, total_bytes)

    def _waiting_room(self, total_bytes: int) -> int | None:
        """Host memory in which layers of a model on a GPU may wait; a model on the CPU has no such tier."""
        if not self._beside_the_host:
            return None
        return self._within(memory_limit_bytes(), self.parameters.host_budget, total_bytes)

    def _within(self, limit: int, asked: int | str | None, total_bytes: int) -> int:
        wanted = int(limit * self.parameters.max_memory_ratio) if asked is None else bytes_in(asked, total_bytes)
        return min(limit, wanted)

    @property
    def _folder(self) -> Path:
        given = self.parameters.folder
        return Path(given).expanduser().absolute() if given else cache_folder() / "offload"

    @property
    def _threads(self) -> int:
        return self.parameters.threads or min(MOST_THREADS, os.cpu_count() or 1)

    def _told(self, units: Sequence[Unit], decision: Mapping[str, Any]) -> list[str]:
        if "slots_per_layer" in decision:
            return slots_told(decision)
        if "experts" in decision:
            kept, most = decision["kept_per_layer"], max(decision["experts"].values())
            return [
                f"experts of {len(units)} layers stream one by one, {kept} of {most} stay in each; "
                f"{in_words(decision['memory_bytes'])} of weights are in memory at most (budget "
                f"{in_words(decision['budget_bytes'])}), with all experts of one layer, which a prompt may choose."
            ]
        every = len(units) + len(decision["resident"])
        slots = "1 slot" if decision["slots"] == 1 else f"{decision['slots']} slots"
        told = (
            f"{len(units)} of {every} layers stream: {_moved(decision)} for each pass, and "
            f"{in_words(decision['memory_bytes'])} of weights are in memory (budget "
            f"{in_words(decision['budget_bytes'])}), {slots} of {in_words(decision['slot_bytes'])} among them"
        )
        if decision["read_bytes_per_pass"]:
            through = in_words(self._threads * (PIECE_BYTES + 2 * BLOCK))
            told += f"; {self._threads} threads read through {through} at most beside that"
        notes = [f"{told}."]
        if decision["slots"] == 1:
            notes.append("the budget has room for one slot, so that a layer is not read while another one streams by.")
        if "experts_whole" in decision:
            notes.append(f"experts stream with their layers, chosen or not: {decision['experts_whole']}.")
        return notes

    def _without_effect(self, decision: Mapping[str, Any]) -> Iterator[str]:
        """What was asked for and is for models on another device."""
        if self._beside_the_host:
            return
        if self.parameters.gpu_budget is not None:
            yield "gpu_budget is for models on a GPU: this one is on the CPU, where host_budget counts."
        if not self.parameters.expert_slots and "experts" in decision:
            yield "expert_slots is for models on a GPU: this one is on the CPU, where experts are read one by one."


def _moved(decision: Mapping[str, Any]) -> str:
    """What a pass brings to where it is computed with, and from where."""
    brought = {"copied from host memory": decision["host_bytes"], "read from disk": decision["read_bytes_per_pass"]}
    return " and ".join(f"{in_words(size)} are {how}" for how, size in brought.items() if size)
