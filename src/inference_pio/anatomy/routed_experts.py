"""The experts of mixtures, whole, with the router's rows that lead to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from inference_pio.anatomy.decoder_mlp import CORRECTION, EXPERTS, ROUTER, Mixture, mlp_parts
from inference_pio.anatomy.mlp_channels import DOWN_OF_EXPERTS, GATE_UP_OF_EXPERTS
from inference_pio.anatomy.prunable import Prunable, Weights, said_by

ROUTED = "experts"
COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")


@dataclass(frozen=True)
class RoutedExperts(Prunable):
    """A mixture of `width` experts, `top_k` of which serve a token."""

    top_k: int
    told_by: ClassVar[tuple[str, ...]] = COUNTS

    @property
    def experts(self) -> str:
        """The path of the fused experts."""
        return f"{self.path}.{EXPERTS}"

    @property
    def weights(self) -> dict[str, Any]:
        router, experts = self.module.get_submodule(ROUTER), self.module.get_submodule(EXPERTS)
        found: dict[str, Any] = {f"{ROUTER}.weight": router.weight}
        if (correction := router._buffers.get(CORRECTION)) is not None:
            found[f"{ROUTER}.{CORRECTION}"] = correction
        return {**found, **{f"{EXPERTS}.{name}": weight for name, weight in experts.named_parameters(recurse=False)}}

    @property
    def down(self) -> str:
        """The name of the experts' last matrices."""
        return f"{EXPERTS}.{DOWN_OF_EXPERTS}"

    def told(self, config: object, width: int) -> dict[str, int]:
        return said_by(config, COUNTS, self.width, width)

    def only(self, kept: Tensor) -> Weights:
        """The weights of the experts numbered `kept`, in that order."""
        return {name: weight.detach().index_select(0, kept.to(weight.device)) for name, weight in self.weights.items()}

    def first(self, width: int) -> Weights:
        return {name: weight.detach()[:width] for name, weight in self.weights.items()}


def routed_experts(model: nn.Module) -> Iterator[RoutedExperts | tuple[str, str]]:
    """Every mixture; a path and a reason in the place of those of other kinds."""
    for path, module in list(model.named_modules()):
        if not {ROUTER, EXPERTS} <= dict(module.named_children()).keys():
            continue
        parts = mlp_parts(module)
        yield (path, parts) if isinstance(parts, str) else _of_mixture(path, parts)  # type: ignore[arg-type]


def _of_mixture(path: str, mixture: Mixture) -> RoutedExperts | tuple[str, str]:
    parameters = dict(mixture.experts.named_parameters(recurse=False))
    if set(parameters) != {GATE_UP_OF_EXPERTS, DOWN_OF_EXPERTS} or mixture.experts._buffers:
        return path, "its experts are stored in fewer bits, or in a way not known"
    if mixture.rule.groups > 1:
        return path, f"its router chooses among {mixture.rule.groups} groups of experts, which would be torn apart"
    if set(mixture.router._buffers) - {CORRECTION}:
        return path, "its router leads to places of its own already"
    weight: Tensor = mixture.router.weight  # type: ignore[assignment]
    return RoutedExperts(path, mixture.module, ROUTED, len(weight), mixture.rule.top_k)
