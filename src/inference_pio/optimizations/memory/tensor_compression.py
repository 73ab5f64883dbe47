"""`tensor_compression`: int8 weights, one scale a row, for every Linear and fused expert tensor that can bear it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.walk import experts, linears
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel
from inference_pio.formats.compressed_experts import experts_layout
from inference_pio.formats.int8 import Int8Experts, Int8Linear
from inference_pio.kernels.int8 import choose_int8_backend

KEPT_ROLES = {
    "head": "the head is kept: its rounding reaches the output directly",
    "embedding": "embeddings are kept: a lookup gains nothing from int8",
    "router": "routers are kept: a rounded router sends tokens to other experts",
    "vision": "the vision tower is kept",
    "adapter": "adapters are kept: they are small and may be trained",
}


class TensorCompressionParameters(Settings):
    """`format`: how weights are stored."""

    format: Literal["int8"] = "int8"


class TensorCompression(OptimizationInterface):
    """Weights as int8 with one scale a row; activations stay as they are, the model's dtype too."""

    name = "tensor_compression"
    optimization_type = OptimizationType.MEMORY
    stage = Stage.STORAGE
    summary = "int8 weights, one scale a row: Linears and fused experts"
    exactness = "approximate"
    changes_state_dict = True
    Parameters: ClassVar[type[Settings]] = TensorCompressionParameters

    def sites(self, model: nn.Module) -> Sequence[Site]:
        return list(_weight_sites(model))

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        return {"format": self.parameters.format, "scale": "row"}

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        for site in sites:
            for name, weight in model.get_submodule(site.path).named_parameters():
                if not torch.isfinite(weight.detach().amax() - weight.detach().amin()):
                    raise InvalidModel(
                        f"{site.path}.{name} holds NaN or infinity, so it has no int8 form. "
                        "Check the checkpoint; nothing was touched."
                    )

    def apply(self, model: nn.Module) -> nn.Module:
        for site in self.step.sites:
            self.journal.replace(model.get_submodule(site.path), _compressed(model.get_submodule(site.path)))
        self.say(backend=choose_int8_backend(self.device, _dtype_of(model)))
        return model


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.bfloat16)


def _compressed(module: nn.Module) -> nn.Module:
    return Int8Linear.from_linear(module) if _is_linear(module) else Int8Experts.from_experts(module)


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def _weight_sites(model: nn.Module) -> Iterator[Site]:
    users = _users_of_weights(model)
    acted = set()
    for path, module, role in linears(model):
        acted.add(path)
        yield _site(path, module, role, _why_not(module, role) or _shared(module, users))
    for path, module, role in experts(model):
        acted.add(path)
        yield _site(path, module, role, _why_not(module, role) or experts_layout(module) or _shared(module, users))
    for path, role in roles_of(model).items():
        module = model.get_submodule(path)
        if path not in acted and any(
            parameter.dim() > 1 for parameter in module._parameters.values() if parameter is not None
        ):
            yield _site(path, module, role, KEPT_ROLES.get(role) or f"{type(module).__name__} has no int8 form")


def _site(path: str, module: nn.Module, role: str, skip: str | None) -> Site:
    nbytes = sum(parameter.nbytes for parameter in module.parameters())
    if not skip and not path:
        skip = "it is the model itself, which has no place to put another module in"
    return Site(path, role, claims=frozenset({"weights.storage"}), skip=skip, nbytes=nbytes)


def _why_not(module: nn.Module, role: str) -> str | None:
    if role in KEPT_ROLES:
        return KEPT_ROLES[role]
    if any(parameter.dim() > 1 and not parameter.numel() for parameter in module.parameters()):
        return "its weight is empty"
    if not all(parameter.is_floating_point() and parameter.element_size() > 1 for parameter in module.parameters()):
        return "its weights are stored in fewer bits already"
    if any(value for key, value in module.__dict__.items() if "_hooks" in key and not key.startswith("_is")):
        return "it carries hooks of somebody else, which a new module would lose"
    if "forward" in module.__dict__ or hasattr(module, "parametrizations"):
        return "its forward or its weight is overridden"
    return None


def _users_of_weights(model: nn.Module) -> dict[int, int]:
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1
    return users


def _shared(module: nn.Module, users: dict[int, int]) -> str | None:
    if any(users[id(parameter)] > 1 for parameter in module.parameters()):
        return "it shares its weights with another module"
    return None
