"""The linear layers whose weight may be kept in another shape, and the reasons of those that may not."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.latent_attention import OUT_OF_LATENT, is_latent_attention
from inference_pio.anatomy.parts import carries_hooks, is_adapted, reads_weight_of
from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from inference_pio.anatomy.walk import experts, linears, parent_of
from inference_pio.contract.site import Site

KEPT_ROLES = {
    "head": "the head is kept: what it loses reaches the output directly (targets=['head'] takes it)",
    "embedding": "embeddings are kept: a lookup gains nothing from two factors",
    "router": "routers are kept: a changed router sends tokens to other experts",
    "vision": "the vision tower is kept (targets=['vision'] takes it)",
    "adapter": "adapters are kept: they are small and may be trained",
}
ON_REQUEST = frozenset({"head", "vision"})
"""Kept roles that are taken where the targets name them."""


def factorable_sites(model: nn.Module, chosen: Chosen, claims: frozenset[str]) -> Iterator[Site]:
    """A site for each linear layer, convolution and module of fused experts, with the reason of those passed over."""
    shared = shared_weights(model)
    for path, module, role in linears(model):
        skip = chosen.why_not(path, role) or _why_kept(model, path, module, role, chosen)
        skip = skip or why_shared(module.parameters(recurse=False), shared)
        weight = module._parameters.get("weight")
        yield Site(path, role, claims, skip, nbytes=0 if weight is None else weight.nbytes)
    roles = roles_of(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.modules.conv._ConvNd):
            role = roles.get(path, "unknown")
            skip = chosen.why_not(path, role) or _why_role(role, chosen) or _why_place(model, path)
            skip = skip or _why_hooked(module) or why_shared(module.parameters(recurse=False), shared)
            yield Site(path, role, claims, skip, nbytes=sum(one.nbytes for one in module.parameters(recurse=False)))
    for path, _, role in experts(model):
        reason = "fused experts are kept: one product serves all of them, and knows no factors"
        yield Site(path, role, claims, chosen.why_not(path, role) or reason)


def _why_role(role: str, chosen: Chosen) -> str | None:
    return KEPT_ROLES.get(role) if not (role in ON_REQUEST and chosen.by_role(role)) else None


def _why_place(model: nn.Module, path: str) -> str | None:
    if not path:
        return "it is the model itself, which nothing holds"
    parent, name = parent_of(model, path)
    if is_latent_attention(parent) and name == OUT_OF_LATENT:
        return "what expands a latent cache is kept: attention reads its weight from beside it"
    if reads_weight_of(parent, name):
        return f"{type(parent).__name__} reads its weight from beside it"
    return "an adapter is wrapped around it" if is_adapted(parent) else None


def _why_kept(model: nn.Module, path: str, module: nn.Module, role: str, chosen: Chosen) -> str | None:
    if reason := _why_role(role, chosen) or _why_place(model, path):
        return reason
    if "forward" in module.__dict__ or hasattr(module, "parametrizations"):
        return "its forward or its weight is overridden"
    weight = module._parameters.get("weight")
    if weight is None or not weight.is_floating_point() or weight.element_size() < 2:
        return "its weight is stored in fewer bits already"
    return _why_hooked(module)


def _why_hooked(module: nn.Module) -> str | None:
    return "it carries hooks of somebody else, which a new module would lose" if carries_hooks(module) else None
