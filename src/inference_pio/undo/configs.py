"""A model's own copy of its configuration: two models built from one object share it, and an edit must not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from inference_pio.compat import is_config
from inference_pio.undo.journal import Journal
from inference_pio.undo.key_order import reorder
from inference_pio.undo.module_walk import modules_of
from inference_pio.undo.places import NEVER, configs_of
from inference_pio.undo.slots import ABSENT


@dataclass
class OwnConfigs:
    """The copies made for one model, with what stood in them, so that a user's later edit is seen."""

    copies: list[Any] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)


def own_configs(journal: Journal, model: nn.Module) -> OwnConfigs:
    """Give every module that holds a configuration this model's own copy; ties between configurations stay."""
    memo: dict[int, Any] = {}
    for module in modules_of(model):
        if NEVER.issuperset(map(type, module.__dict__.values())):
            continue
        for key, value in list(module.__dict__.items()):
            if type(value) not in NEVER and is_config(value):
                journal.set(module, key, copy.deepcopy(value, memo))
    copies = [config for _, config in configs_of(model)]
    return OwnConfigs(copies, [snapshot(config) for config in copies])


def snapshot(config: Any) -> dict[str, Any]:
    """The attributes of a configuration, its inner configurations left out (they have snapshots of their own)."""
    return {key: copy.deepcopy(value) for key, value in vars(config).items() if not is_config(value)}


@contextmanager
def put_back_at_the_end(model: nn.Module) -> Iterator[None]:
    """What is set in a model's configurations in here is as before at the end: the library's own calls write into them.

    Attributes are put back one by one, since other threads may read them meanwhile.
    """
    before = [(vars(config), dict(vars(config))) for _, config in configs_of(model)]
    try:
        yield
    finally:
        for now, was in before:
            for key in [key for key in now.keys() | was.keys() if now.get(key, ABSENT) is not was.get(key, ABSENT)]:
                if key in was:
                    now[key] = was[key]
                else:
                    del now[key]
            reorder(now, list(was))
