"""Which places of a checkpoint fill which tensor of a model, and the model with tensors that wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from inference_pio.compat import hub_tensors
from inference_pio.errors import SourceError
from inference_pio.streaming.arrival import Arrivals, Parts
from inference_pio.undo.checkpoint import TensorInFile
from inference_pio.undo.survey import named_tensors


def await_weights(model: nn.Module, tensors: Mapping[str, TensorInFile], arrivals: Arrivals) -> int:
    """Put tensors that wait for a checkpoint in the place of all on the meta device; returns the bytes to be read.

    What is not on the meta device is moved to the model's own. Raises SourceError where the checkpoint has a tensor in
    a form that only the library can make into the model's.
    """
    total, made, names = 0, dict[int, tuple[torch.Tensor, torch.Tensor]](), dict[int, list[str]]()
    for name, tensor in named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
    for _, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    parts = parts_of(model, names[id(tensor)], tensor, tensors) if tensor.is_meta else ()
                    total += sum(one.nbytes for _, one in parts)
                    here = arrivals.await_tensor(tensor, parts) if tensor.is_meta else tensor.to(arrivals.device)
                    made[id(tensor)] = tensor, here
                table[key] = made[id(tensor)][1]
    return total


def parts_of(
    model: nn.Module, names: Sequence[str], tensor: torch.Tensor, tensors: Mapping[str, TensorInFile]
) -> Parts:
    """The places that fill a tensor, which may have several names, side by side: one, or such as the experts of a
    layer. Raises SourceError.
    """
    for one in names:
        found = _whole(tensor, tensors.get(one)) or _cut_up(model, one, tensor, tensors)
        if found is not None:
            return found
    raise SourceError(
        f"the checkpoint has {names[0]} in a form that only the library can read: open_model, then optimize, load it."
    )


def _whole(tensor: torch.Tensor, stored: TensorInFile | None) -> Parts | None:
    return ((0, stored),) if stored is not None and stored.shape == tuple(tensor.shape) else None


def _cut_up(model: nn.Module, name: str, tensor: torch.Tensor, tensors: Mapping[str, TensorInFile]) -> Parts | None:
    """As the library would cut a tensor to save it; numbers of rows go that way, and tell of each row.

    They stand in two columns, or one that lies across would look the same.
    """
    if not tensor.dim():
        return None
    width, rows = tensor.shape[-1], tensor.shape[:-1].numel()
    numbers = torch.arange(rows).reshape(*tensor.shape[:-1], 1).repeat_interleave(2, dim=-1)
    found: list[tuple[int, TensorInFile]] = []
    end = 0
    parts = hub_tensors(model, {name: numbers})
    for part, lines in sorted(parts.items(), key=lambda item: int(item[1].flatten()[0])):
        stored = tensors.get(part)
        if stored is None or stored.shape != (*lines.shape[:-1], width) or lines.shape[-1:] != (2,):
            return None
        if not torch.equal(lines[..., 0].flatten(), torch.arange(end, end + lines.numel() // 2)):
            return None
        found.append((end * width * tensor.dtype.itemsize, stored))
        end += lines.numel() // 2
    return tuple(found) if end == rows else None
