"""What the tests of undo share: an edit that uses every verb, and taking steps back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from inference_pio.undo.frame import Frame
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction

BASE_MARK = "recorded"


def take_back(journal: Journal, *frames: Frame, **how: Any) -> None:
    """Take frames back for good."""
    transaction = Transaction(journal)
    transaction.undo(frames, **how)
    transaction.commit()


def storage_of(tensor: torch.Tensor) -> StorageWeakRef:
    """A look at a storage that does not keep it: `expired()` tells whether its memory was freed."""
    return StorageWeakRef(tensor.untyped_storage())


def weighted(model: nn.Module) -> list[str]:
    """Paths of the leaf modules with a matrix of weights that no other module shares."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return [
        path
        for path, module in model.named_modules()
        if not module._modules and module._parameters.get("weight") is not None
        if module.weight.dim() > 1 and users[id(module.weight)] == 1
    ]


class Doubled(nn.Module):
    """A module in another's place that keeps it within."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given: Any, **named: Any) -> Any:
        return 2 * self.inner(*given, **named)


def edit_everything(journal: Journal, model: nn.Module) -> None:
    """An optimization that uses every verb of the journal; the model still computes."""
    paths = weighted(model)
    one, two, three, four = (model.get_submodule(paths[number % len(paths)]) for number in range(4))
    journal.set(model, "label", "fast")
    journal.set(one, "weight", nn.Parameter(one.weight.detach().clone() * 2))
    journal.set(one, "note", [1])
    journal.delete(one, "note")
    kept, shape = two.weight.detach().clone(), two.weight.shape
    journal.delete(two, "weight")
    journal.register(two, two._buffers, "weight", kept)
    journal.rehouse({three.weight: torch.stack([three.weight.detach(), three.weight.detach()])[1]})
    journal.replace(four, Doubled(four))
    journal.register(model, vars(model), "shape", shape)
    journal.hook(model, "forward_pre", lambda module, given, named: None, with_kwargs=True, prepend=True)
    journal.hook(one, "forward", lambda module, given, out: out + 1)
    if hasattr(model, "config"):
        journal.set(model.config, "touched", True)
    journal.defer(lambda: vars(model).pop(BASE_MARK, None))
    one = two = three = four = None
