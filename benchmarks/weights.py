"""What one decoded token must read of a model, and what one prompt token must compute."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def read_per_token(model: nn.Module) -> int:
    """Weights that one token reads: no picture tower, of the experts its share, embeddings only for a tied head."""
    config = model.config.get_text_config()
    experts = getattr(config, "num_experts", None) or getattr(config, "n_routed_experts", None) or 0
    share = config.num_experts_per_tok / experts if experts else 1.0
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    of_head = set() if head is None else {id(tensor) for _, tensor in _tensors(head)}
    embeddings = {id(tensor) for _, tensor in _tensors(embedding)} - of_head
    total = 0.0
    for name, tensor in _tensors(model):
        if "visual" in name.split(".") or id(tensor) in embeddings:
            continue
        total += _bytes(tensor) * (share if ".experts." in name else 1.0)
    return int(total)


def cache_bytes_per_token(model: nn.Module, prompt: Tensor) -> float:
    """What the plain model's cache holds for each token, found by filling one."""
    with torch.no_grad():
        cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    return float(held / prompt.shape[1])


def flops_per_token(model: nn.Module) -> float:
    """Two for each weight that a token meets in a product, attention aside and the head too: a prefill skips it."""
    read = read_per_token(model)
    head = model.get_output_embeddings()
    return float(read - (_bytes(head.weight) if head is not None else 0))  # bfloat16: 2 bytes and 2 operations each


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _bytes(tensor: Tensor) -> int:
    """A wrapper subclass (a quantized tensor, say) has no bytes of its own: its inner tensors do."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes
