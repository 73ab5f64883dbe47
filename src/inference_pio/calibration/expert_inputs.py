"""What each expert of a mixture is given: the tokens routed to it, and its own activations before the last matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.calibration.rows import Rows
from inference_pio.errors import InvalidModel

GATE_UP, DOWN = "gate_up_proj", "down_proj"


def watch_experts(path: str, module: nn.Module, rows: Rows) -> torch.utils.hooks.RemovableHandle:
    """Report under `path.gate_up_proj[e]` and `path.down_proj[e]` what expert e is given.

    Raises InvalidModel for fused experts of another layout than transformers' gate-and-up with down.
    """
    weights = dict(module.named_parameters(recurse=False))
    if set(weights) != {GATE_UP, DOWN} or not callable(getattr(module, "_apply_gate", None)):
        raise InvalidModel(f"{path} holds experts as {', '.join(sorted(weights))}: the inputs of such are not known.")

    def note(experts: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        hidden, chosen = routed(args, kwargs)
        rows.seen.add(path)
        rows.calls[path] += 1
        for expert, given in rows_by_expert(hidden, chosen, weights[DOWN].shape[0], rows.true_rows(hidden.shape[0])):
            rows.add(f"{path}.{GATE_UP}[{expert}]", given)
            inner = experts._apply_gate(F.linear(given, weights[GATE_UP][expert]))  # type: ignore[operator]
            rows.add(f"{path}.{DOWN}[{expert}]", inner)

    return module.register_forward_pre_hook(note, with_kwargs=True)


def routed(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens [n, d] and the experts chosen for each [n, k], out of the arguments of an experts module."""
    names = ("hidden_states", "top_k_index")
    hidden, chosen = (args[place] if place < len(args) else kwargs[name] for place, name in enumerate(names))
    return hidden.reshape(-1, hidden.shape[-1]), chosen.reshape(-1, chosen.shape[-1])


def rows_by_expert(
    hidden: Tensor, chosen: Tensor, experts: int, true_rows: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    """Each expert that is used, with the tokens [m, d] routed to it."""
    chosen = chosen if true_rows is None else chosen[true_rows.to(chosen.device)]
    hidden = hidden if true_rows is None else hidden[true_rows.to(hidden.device)]
    for expert in torch.unique(chosen).tolist():
        if expert < experts:  # one beyond the last stands for "none" in a library's padded routing
            yield expert, hidden[(chosen == expert).any(-1)]
