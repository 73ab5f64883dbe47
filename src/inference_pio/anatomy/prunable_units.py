"""All that may become smaller in a model, kind by kind, and what its configurations then say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from inference_pio.anatomy.head_groups import KV_HEADS, head_groups
from inference_pio.anatomy.mlp_channels import EXPERT_WIDTH, MLP, InnerChannels, inner_channels
from inference_pio.anatomy.prunable import Prunable
from inference_pio.anatomy.routed_experts import ROUTED, routed_experts

CHANNELS = (MLP, EXPERT_WIDTH)
WALKS = {ROUTED: routed_experts, KV_HEADS: head_groups}
CONFIGURED = frozenset({KV_HEADS})
"""Kinds of which every layer must have as many: caches and other readers are told one number for all."""


def prunable_units(model: nn.Module, kinds: Sequence[str]) -> Iterator[Prunable | tuple[str, str]]:
    """Every module that holds units, channels of all kinds and others of `kinds`; a path and a reason for those which
    are not known."""
    yield from inner_channels(model)
    for kind, walk in WALKS.items():
        if kind in kinds:
            yield from walk(model)


def units_at(model: nn.Module, paths: Sequence[str]) -> dict[str, Prunable]:
    """The units of the modules at `paths`, of whatever kind."""
    wanted = set(paths)
    found = (one for one in prunable_units(model, list(WALKS)) if isinstance(one, Prunable))
    return {one.path: one for one in found if one.path in wanted}


def paths_of(model: nn.Module, kind: str) -> list[str]:
    """Where units of a kind are, or a reason stands in their place."""
    return [one.path if isinstance(one, Prunable) else one[0] for one in WALKS[kind](model)]


def told_counts(model: nn.Module, configs: Mapping[str, object], counts: Mapping[str, int]) -> dict[str, int]:
    """What configurations say with `counts` units at each path, where all modules that it speaks of have as many."""
    told: dict[str, set[int]] = {}
    for one in prunable_units(model, list(WALKS)):
        if isinstance(one, Prunable):
            for name, config in configs.items():
                for key, value in _told(one, config, counts.get(one.path)).items():
                    told.setdefault(f"{name}.{key}", set()).add(value)
    before = {f"{name}.{key}": value for name, config in configs.items() for key, value in vars(config).items()}
    return {key: value for key, (value, *others) in told.items() if not others and value != before[key]}


def _told(one: Prunable, config: object, count: int | None) -> dict[str, int]:
    """What a configuration says of a module after and, of one that stays, now."""
    if count is not None and count != one.width:
        return one.told(config, count)
    before = one.told(config, one.width - 1)  # what it would be asked to say otherwise
    return {key: vars(config)[key] for key in before}


def is_channels(one: Prunable) -> bool:
    """Whether as many need not stay in every layer."""
    return isinstance(one, InnerChannels)
