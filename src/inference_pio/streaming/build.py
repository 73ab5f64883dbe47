"""Put units away and let them stream: origins found, reader and slots made, every edit through the journal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from inference_pio.compat import hub_tensors
from inference_pio.contract.byte_size import in_words
from inference_pio.streaming.aligned import BLOCK, aligned_bytes
from inference_pio.streaming.device_slot import Device
from inference_pio.streaming.expert_slots import ExpertSlots
from inference_pio.streaming.expert_stream import ExpertStream
from inference_pio.streaming.hooks import STREAM, Forecast, hang_on
from inference_pio.streaming.mapped_files import page_out_mapped
from inference_pio.streaming.origin import Origins, find_origins
from inference_pio.streaming.pieces import PIECE_BYTES, Piece
from inference_pio.streaming.pinned import Pinned
from inference_pio.streaming.reader import Reader, Verify
from inference_pio.streaming.stream import Stream
from inference_pio.streaming.units import Region, Unit
from inference_pio.undo.journal import Journal
from inference_pio.undo.parked import Parked
from inference_pio.undo.survey import named_tensors


@dataclass(frozen=True)
class How:
    """What a user may choose: where weights that no checkpoint holds are put, how they are read and checked."""

    folder: Path
    threads: int
    verify: Verify


def foretell(journal: Journal, model: nn.Module, units: Sequence[Unit], slot_bytes: int) -> None:
    """On a plan's skeleton: what would be put away, and the memory of all slots."""
    for unit in units:
        for region in unit.regions:
            journal.put_away(region.tensors, Parked(tuple(region.views), "", _nothing, checksum=0, nbytes=0), _rest)
    journal.set(model, STREAM, Forecast(slot_bytes))


def put_on_stream(
    journal: Journal, model: nn.Module, units: Sequence[Unit], in_host: Collection[str], slots: int, how: How
) -> tuple[str, str]:
    """Let units stream, those `in_host` from host memory, the others from disk; returns backend and a remark.

    Units whose regions have parts are experts, of which `slots` a layer stay in memory: of the device, where all of
    them wait in host memory, else of the host.

    All that is opened is closed when the step is taken back. Raises StorageError, DiskFull, StreamError.
    """
    on_disk = [number for number, unit in enumerate(units) if unit.path not in in_host]
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    origins = find_origins(
        [units[number] for number in on_disk], names, journal.vault.checkpoint, how.folder, partial(_cut_up, model)
    )
    if origins.store is not None:
        journal.defer(origins.store.close)
    reader = Reader(how.threads, min(PIECE_BYTES, origins.largest_piece), verify=how.verify)
    journal.defer(reader.close)
    reader.open(origins.files)
    pieces: list[list[Piece]] = [[] for _ in units]
    for place, number in enumerate(on_disk):
        pieces[number] = origins.pieces_of(place, units[number])
    device = _device(units, set(range(len(units))) - set(on_disk))
    experts = [unit.regions[0].parts for unit in units]
    stream: Stream
    if min(experts) > 1 and device is not None:
        stream = ExpertSlots(units, pieces, reader, experts, slots, device)
    elif min(experts) > 1:
        stream = ExpertStream(units, pieces, reader, experts, slots, origins.store)
    else:
        stream = Stream(units, pieces, reader, slots, origins.store, device)
    journal.defer(stream.close)
    ranges = [(one.tensors[0].untyped_storage().data_ptr(), one.nbytes) for unit in units for one in unit.regions]
    for number, unit in enumerate(units):
        for place, region in enumerate(unit.regions):
            if number in on_disk:
                own = origins.pieces[on_disk.index(number)][place]
                parked = _on_disk(region, own, reader, origins.told)
            else:
                assert device is not None
                parked = _in_host(region, device.waiting[number])
            journal.put_away(region.tensors, parked, stream.rest)
    page_out_mapped(ranges)
    if isinstance(stream, ExpertSlots):
        stream.take_room()  # not before what lay on the device has left it
    stream.begin()
    hang_on(journal, model, stream)
    return f"{how.threads} threads, {reader.backend}", _told(origins, len(units) - len(on_disk))


def _device(units: Sequence[Unit], in_host: Collection[int]) -> Device | None:
    """For a model on a GPU: the stream of copies, and pinned memory with the units that wait in it."""
    device = units[0].tensors[0].device
    if device.type != "cuda" and not in_host:
        return None
    waiting, numbers = {}, sorted(in_host)
    pin = partial(Pinned, registered=device.type == "cuda")
    with ThreadPoolExecutor(1) as hand:  # pinning touches every page: it is done for one unit while another is read
        coming = [hand.submit(pin, units[number].room) for number in numbers[:1]]
        for number, following in zip_longest(numbers, numbers[1:]):
            pinned = waiting[number] = coming.pop().result()
            if following is not None:
                coming.append(hand.submit(pin, units[following].room))
            for region in units[number].regions:
                part = pinned.bytes[region.at : region.at + region.nbytes]
                region.fill(part)
                region.now_in(part)
    return Device(device, waiting)


def _on_disk(region: Region, pieces: Sequence[Piece], reader: Reader, where: str) -> Parked:
    load = partial(_load, pieces, region.nbytes, region.at % BLOCK, reader)
    return Parked(tuple(region.views), where, load, region.checksum, region.nbytes)


def _in_host(region: Region, pinned: Pinned) -> Parked:
    load = pinned.bytes[region.at : region.at + region.nbytes].clone
    views = tuple(region.views)
    return Parked(views, "pinned host memory", load, region.checksum, region.nbytes, held_bytes=region.nbytes)


def _load(pieces: Sequence[Piece], nbytes: int, residue: int, reader: Reader) -> torch.Tensor:
    """The bytes of a storage, at an address like its first one, so that the same kernels are chosen for it."""
    raw = aligned_bytes(nbytes, residue)
    reader.read_now(pieces, raw)
    return raw


def _cut_up(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as a checkpoint of the library's has them; as they are for a model that is none of its own."""
    return hub_tensors(model, tensors) if hasattr(model, "save_pretrained") else tensors


def _told(origins: Origins, in_host: int) -> str:
    waiting = f"{in_host} layers wait in pinned host memory; " if in_host else ""
    told = f"{waiting}{in_words(origins.checkpoint_bytes)} of what streams is read from the model's own files"
    if origins.store is None:
        return f"{told}, and nothing was written"
    how = "written to" if origins.store.written_bytes else "found in"
    return f"{told}; {in_words(origins.store_bytes)} that no checkpoint holds were {how} {origins.store.folder}"


def _nothing() -> torch.Tensor:
    """What a skeleton's tensors hold."""
    return torch.empty(0, dtype=torch.uint8)


def _rest() -> None:
    """A skeleton never computes."""
