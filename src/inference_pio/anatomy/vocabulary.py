"""A model's embedding and head, whether their tokens can be told apart, and the tokens that it knows by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.roles import module_that_answers
from inference_pio.anatomy.walk import path_of
from inference_pio.undo.places import configs_of

NAMED = ("token_id", "token_ids", "token_index")
"""How the names end under which configurations keep ids of tokens."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Under which names configurations keep a bound of logits."""


@dataclass(frozen=True)
class Vocabulary:
    """`embedding` and `head` by path, with a row of weights for each of `size` tokens; `tied` if it is one weight."""

    embedding: str
    head: str
    size: int
    tied: bool


def vocabulary_of(model: nn.Module) -> Vocabulary | tuple[str, str] | None:
    """The vocabulary, or the embedding's path with the reason why its rows must stay, or None where there is none."""
    embedding, head = (module_that_answers(model, call) for call in ("get_input_embeddings", "get_output_embeddings"))
    if embedding is None or head is None:
        return None
    path = path_of(model, embedding)
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return path, "its embedding is none of torch's own"
    if type(head) is not nn.Linear:
        return path, f"its head is a {type(head).__name__}, and no plain Linear"
    if any("forward" in one.__dict__ or one._parameters.get("weight") is None for one in (embedding, head)):
        return path, "the forward or the weight of its embedding or head is overridden"
    if any(one._forward_hooks or one._forward_pre_hooks for one in (embedding, head)):
        return path, "its embedding or head carries hooks of somebody else"
    if caps := [name for _, config in configs_of(model) for name in CAPS if getattr(config, name, None)]:
        return path, f"its logits are bounded behind the head ({caps[0]}), so no token can be made impossible there"
    size = embedding.num_embeddings
    if head.out_features != size:
        return path, f"its embedding knows {size} tokens and its head {head.out_features}"
    ends = {id(embedding), id(head)}
    weights = {id(embedding.weight), id(head.weight)}
    others = [
        one for one in model.modules() if id(one) not in ends and weights & set(map(id, one._parameters.values()))
    ]
    if others:
        return path, f"a {type(others[0]).__name__} shares its weight"
    return Vocabulary(path, path_of(model, head), size, embedding.weight is head.weight)


def readable_tokens(model: nn.Module) -> Tensor | None:
    """The ids that a model's embedding has a row for, on the CPU; None where it has no embedding.

    >>> readable_tokens(nn.Linear(2, 2)) is None
    True
    """
    embedding = module_that_answers(model, "get_input_embeddings")
    size = getattr(embedding, "num_embeddings", None)
    if not isinstance(size, int):
        return None
    places = getattr(embedding, "places", None)  # of one that was trimmed, with a negative one for what is gone
    return torch.arange(size) if not isinstance(places, Tensor) else (places >= 0).nonzero().flatten().cpu()


def named_tokens(model: nn.Module) -> set[int]:
    """The ids that a model's configurations, and what it generates by, call by a name: ends, padding, pictures.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> sizes = {"vocab_size": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}
    >>> sorted(named_tokens(GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=5, bos_token_id=2))))
    [2, 5]
    """
    held = [config for _, config in configs_of(model)]
    generation = getattr(model, "generation_config", None)
    return {token for one in (*held, generation) if one is not None for token in _named(one)}


def _named(config: Any) -> Iterator[int]:
    for name, value in vars(config).items():
        if name.endswith(NAMED):
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, int) and not isinstance(one, bool) and one >= 0:
                    yield one
