"""The model under measurement, as far as a measurement must know it: where its inputs go and what its forward takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go: the embedding's device, else that of the first tensor that holds data.

    >>> input_device(nn.Linear(2, 2))
    device(type='cpu')
    """
    tensors = [*_embedding_weights(model), *model.parameters(), *model.buffers()]
    return next((tensor.device for tensor in tensors if tensor.device.type != "meta"), torch.device("cpu"))


def vocab_size(model: nn.Module) -> int | None:
    """How many tokens the model tells apart, kept ones or not, or None where it has no token embedding."""
    told = getattr(_embedding(model), "num_embeddings", None)
    return told if isinstance(told, int) else next((int(weight.shape[0]) for weight in _embedding_weights(model)), None)


def max_positions(model: nn.Module) -> int | None:
    """The longest sequence the config allows, or None where it names no limit."""
    config: Any = getattr(model, "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text_config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def supported(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of `options` that the model's forward, or its class's where it was wrapped, names as parameters.

    >>> supported(nn.Linear(2, 2), input=1, use_cache=True)
    {'input': 1}
    """
    known = _forward_parameters(model)
    return {name: value for name, value in options.items() if name in known}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_measurable(model: nn.Module) -> None:
    """Refuse what would be timed or judged in a state that nobody infers in."""
    if not isinstance(model, nn.Module):
        raise MeasureError(f"a model is needed to measure, an nn.Module; this is {type(model).__name__}")
    if model.training:
        raise MeasureError(
            f"{type(model).__name__} is in training mode, where dropout changes its answers: call model.eval() first"
        )
    parameters = _forward_parameters(model)
    if "input_ids" not in parameters and all(kind != inspect.Parameter.VAR_KEYWORD for kind in parameters.values()):
        raise MeasureError(
            f"{type(model).__name__} takes no input_ids: speed and quality are measured on models of tokens"
        )


def _forward_parameters(model: nn.Module) -> dict[str, Any]:
    """The names that the instance's forward and its class's take, with their kinds."""
    both = (
        *inspect.signature(type(model).forward).parameters.values(),
        *inspect.signature(model.forward).parameters.values(),
    )
    return {parameter.name: parameter.kind for parameter in both}


def _embedding(model: nn.Module) -> Any:
    try:
        return model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def _embedding_weights(model: nn.Module) -> list[Tensor]:
    weight = getattr(_embedding(model), "weight", None)
    return [weight] if isinstance(weight, Tensor) else []
