"""Where each module that holds weights stands in a decoder: told by structure, and 'unknown' where that is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from inference_pio.anatomy.blocks import Role, attention_children, mlp_children, routers
from inference_pio.anatomy.names import NORM_CLASS, WRAPPED_BY_ADAPTER
from inference_pio.anatomy.parts import (
    base_of,
    is_adapted,
    is_experts,
    other_tower_paths,
    runs_attention,
    vision_paths,
    weights_of,
    within,
)


def roles_of(model: nn.Module) -> dict[str, Role]:
    """The role of every module that directly holds weights, by its path.

    What lies in a vision tower is "vision", what an adapter adds is "adapter"; a shared expert is an MLP like others.

    >>> roles_of(nn.Sequential(nn.Embedding(4, 2), nn.LayerNorm(2), nn.Linear(2, 4)))
    {'0': 'embedding', '1': 'norm', '2': 'unknown'}
    """
    holders = {path: module for path, module in model.named_modules() if weights_of(module)}
    known = dict(_told_by_their_place(model)) if hidden_width(model) else {}
    known |= _ends(model)
    roles = {path: known.get(path) or _told_by_itself(module) for path, module in holders.items()}
    return roles | _in_towers(model, holders) | _of_adapters(model, holders)


def _ends(model: nn.Module) -> dict[str, Role]:
    """The embedding and the head, where the model itself names them."""
    ends: dict[str, Role] = {}
    paths = {id(module): path for path, module in model.named_modules()}
    calls: dict[str, Role] = {"get_output_embeddings": "head", "get_input_embeddings": "embedding"}
    for call, role in calls.items():
        end = module_that_answers(model, call)
        if end is not None and id(base_of(end)) in paths:
            ends[paths[id(base_of(end))]] = role
    return ends


def module_that_answers(model: nn.Module, call: str) -> nn.Module | None:
    """What the library's call, such as `get_output_embeddings`, names; None where a model has none.

    >>> module_that_answers(nn.Linear(2, 2), "get_input_embeddings") is None
    True
    """
    method: Callable[[], object] | None = getattr(model, call, None)
    if method is None:
        return None
    try:
        answer = method()
    except (NotImplementedError, AttributeError):  # the library's answer for a model that has none
        return None
    return answer if isinstance(answer, nn.Module) else None


def hidden_width(model: nn.Module) -> int | None:
    """The width of the residual stream; None for what is not a decoder."""
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", None)
    width = getattr(text_config() if callable(text_config) else config, "hidden_size", None)
    return width if isinstance(width, int) else None


def _told_by_their_place(model: nn.Module) -> Iterator[tuple[str, Role]]:
    hidden = hidden_width(model)
    for path, module in model.named_modules():
        if runs_attention(module):
            yield from _with_base_paths(path, module, attention_children(module))
        elif any(is_experts(base_of(child)) for child in module.children()):
            yield from _with_base_paths(path, module, routers(module))
        elif hidden:
            yield from _with_base_paths(path, module, mlp_children(module, hidden))


def _with_base_paths(path: str, module: nn.Module, children: dict[str, Role]) -> Iterator[tuple[str, Role]]:
    for name, role in children.items():
        child, place = module.get_submodule(name), f"{path}.{name}" if path else name
        while is_adapted(child):
            child, place = child.get_submodule(WRAPPED_BY_ADAPTER), f"{place}.{WRAPPED_BY_ADAPTER}"
        yield place, role


def _told_by_itself(module: nn.Module) -> Role:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if is_experts(module):
        return "experts"
    vectors = all(tensor.dim() == 1 for tensor in weights_of(module).values())
    return "norm" if vectors and NORM_CLASS in type(module).__name__.lower() else "unknown"


def _in_towers(model: nn.Module, holders: dict[str, nn.Module]) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for towers, role in ((other_tower_paths(model), "unknown"), (vision_paths(model), "vision")):
        for path in holders:
            if any(within(path, tower) for tower in towers):
                roles[path] = role  # type: ignore[assignment]
    return roles


def _of_adapters(model: nn.Module, holders: dict[str, nn.Module]) -> dict[str, Role]:
    """What hangs on an adapter layer, other than the layer it adapts."""
    layers = [path for path, module in model.named_modules() if is_adapted(module)]
    adapted = {layer: f"{layer}.{WRAPPED_BY_ADAPTER}" if layer else WRAPPED_BY_ADAPTER for layer in layers}
    return {
        path: "adapter"
        for path in holders
        if any(within(path, layer) and not within(path, base) for layer, base in adapted.items())
    }
