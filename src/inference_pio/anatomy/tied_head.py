"""A head whose weight is the embedding's: where both are, and why they might not be changed together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from inference_pio.anatomy.parts import carries_hooks
from inference_pio.anatomy.roles import module_that_answers
from inference_pio.anatomy.walk import path_of


@dataclass(frozen=True)
class TiedHead:
    """The paths of both; `left`: why they must stay as they are, or None."""

    embedding: str
    head: str
    left: str | None


def tied_head(model: nn.Module) -> TiedHead | None:
    """The embedding and the head that a model names, where one Parameter is the weight of both; None elsewhere.

    >>> tied_head(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3))) is None
    True
    """
    embedding, head = (module_that_answers(model, call) for call in ("get_input_embeddings", "get_output_embeddings"))
    if embedding is None or head is None or embedding is head:
        return None
    weight = embedding._parameters.get("weight")
    if weight is None or head._parameters.get("weight") is not weight:
        return None
    return TiedHead(path_of(model, embedding), path_of(model, head), _why_left(model, embedding, head))


def _why_left(model: nn.Module, embedding: nn.Module, head: nn.Module) -> str | None:
    ends = {id(embedding), id(head)}
    weight = embedding._parameters["weight"]
    for module in model.modules():
        if id(module) not in ends and any(one is weight for one in module._parameters.values()):
            return f"a {type(module).__name__} shares the weight of embedding and head"
    if carries_hooks(embedding):
        return "the embedding that it is tied to carries hooks of somebody else, which a new module would lose"
    if "forward" in embedding.__dict__ or hasattr(embedding, "parametrizations"):
        return "the embedding that it is tied to has an overridden forward or weight"
    return None
