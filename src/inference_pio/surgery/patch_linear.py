"""`patch_linear`: a convolution over patches that are handed over one by one is a matrix product, and computed so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.anatomy.call_guards import library_forward, put_forward
from inference_pio.contract.site import Site
from inference_pio.surgery.edit import Edit, Places
from inference_pio.undo.journal import Journal


class PatchLinear(Edit):
    """The convolution and its weight stay where they are: checkpoints, and what reads them, see no difference."""

    name = "patch_linear"
    exactness = "algebraic"
    changes_state_dict = False

    def sites(self, model: nn.Module) -> Iterable[Site]:
        for path, module in model.named_modules():
            if isinstance(module, nn.Conv3d):
                yield Site(path, "vision", skip=_why_not(module), whole=False, nbytes=module.weight.nbytes)

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        for path in places:
            put_forward(journal, model.get_submodule(path), patch_forward)
        return [f"{len(places)} convolutions of whole patches are matrix products; other inputs are convolved."]


def patch_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The forward of a convolution that is given single patches, [patches, channels, *kernel size]."""
    weight: Tensor = self.weight  # type: ignore[assignment]  # a pruned one is no Parameter
    if named or len(given) != 1 or given[0].shape[1:] != weight.shape[1:]:
        return library_forward(self, *given, **named)
    out = F.linear(given[0].flatten(1), weight.flatten(1), self.bias)  # type: ignore[arg-type]
    return out.view(*out.shape, *[1] * (weight.dim() - 2))


def _why_not(module: nn.Conv3d) -> str | None:
    return next(_reasons(module), None)


def _reasons(module: nn.Conv3d) -> Iterator[str]:
    if type(module).forward is not nn.Conv3d.forward or "forward" in module.__dict__:
        yield "its forward is overridden"
    if hasattr(module, "parametrizations"):
        yield "its weights are parametrized"
    if module.kernel_size != module.stride:
        yield f"its patches are {module.kernel_size} large and {module.stride} apart, so they are not told apart"
    if module.groups != 1 or any(one != 1 for one in module.dilation):
        yield "it has groups or holes"
    if module.padding != (0, 0, 0):
        yield "it pads its input"
