"""The edits there are, in the order in which they are made: what renumbers layers comes last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from inference_pio.anatomy.parts import within
from inference_pio.surgery.attention import Attention
from inference_pio.surgery.blocks import Blocks
from inference_pio.surgery.dead_modules import DeadModules
from inference_pio.surgery.edit import Edit, Places
from inference_pio.surgery.latent_decode import LatentDecode
from inference_pio.surgery.norm_folding import READERS, NormFolding
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.patch_linear import PatchLinear
from inference_pio.surgery.text_only import TextOnly
from inference_pio.surgery.unused_experts import UnusedExperts
from inference_pio.surgery.vocabulary import TrimmedVocabulary

ALL: tuple[type[Edit], ...] = (
    PatchLinear, LatentDecode, DeadModules, NormFolding, TextOnly, TrimmedVocabulary, UnusedExperts, Attention, Blocks,
)  # fmt: skip


def edits_of(asked: SurgeryParameters) -> list[Edit]:
    """The edits that are asked for."""
    return [kind(asked) for kind in ALL if kind.name in asked.names]


def to_be_done(model: nn.Module, places: Mapping[str, Places]) -> dict[str, Places]:
    """Places by edit without those in what another edit takes away, by the paths that layers have now: a saved
    configuration tells the fewer ones already.
    """
    blocks, attentions = (places.get(kind.name) or {} for kind in (Blocks, Attention))
    gone = [*blocks, *(f"{path}.{place['attention']}" for path, place in attentions.items())]
    moved = _moved_layers(model, blocks)
    found = {Blocks.name: blocks} if blocks else {}
    for name, those in places.items():
        left = {path: place for path, place in those.items() if not _goes(path, place, gone)}
        if left and name != Blocks.name:
            found[name] = {_moved(path, moved): place for path, place in left.items()}
    return found


def _goes(path: str, place: Any, gone: Iterable[str]) -> bool:
    """Whether a place is in what goes, or acts on something that is."""
    acts_on = [path, *(place or {}).get(READERS, ())]
    return any(within(one, away) for one in acts_on for away in gone)


def _moved_layers(model: nn.Module, blocks: Places) -> dict[str, str]:
    """Where the layers that stay are now, if their list is as short as it will be."""
    if not blocks:
        return {}
    above, before = next(iter(blocks)).rpartition(".")[0], next(iter(blocks.values()))["of"]
    if len(list(model.get_submodule(above).children())) == before:
        return {}
    kept = [path for path in (f"{above}.{number}" for number in range(before)) if path not in blocks]
    return {path: f"{above}.{number}" for number, path in enumerate(kept)}


def _moved(path: str, moved: Mapping[str, str]) -> str:
    for before, now in moved.items():
        if within(path, before):
            return now + path[len(before) :]
    return path
