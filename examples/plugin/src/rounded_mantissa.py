"""An optimization in a package of its own: weights keep a few bits of mantissa, which tells what a format would cost.

It saves nothing by itself. Applied to a model, it shows how far answers move where weights keep so many bits, before
anybody writes the kernels of such a format; what undoes it, plans it and reports it is the manager's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from inference_pio import OptimizationInterface, OptimizationType
from inference_pio.anatomy.walk import linears
from inference_pio.contract.optimization import Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site


class RoundedMantissaParameters(Settings):
    """`bits` of mantissa that are kept behind the leading one: bfloat16 has 7, fp8 (e4m3) 3."""

    bits: int = Field(3, ge=1, le=22)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight rounded to so many bits of mantissa, to even, in its own dtype.

    >>> rounded(torch.tensor([1.0, 1.1, -0.3]), bits=1).tolist()
    [1.0, 1.0, -0.25]
    """
    mantissa, exponent = torch.frexp(weight.float())
    steps = 2.0 ** (bits + 1)
    return torch.ldexp((mantissa * steps).round() / steps, exponent).to(weight.dtype)


class RoundedMantissa(OptimizationInterface):
    """Linear layers whose weights have few bits of mantissa; their dtype and their bytes stay what they are."""

    name = "rounded_mantissa"
    optimization_type = OptimizationType.MODEL_STRUCTURE
    stage = Stage.STRUCTURE
    summary = "weights rounded to a few bits of mantissa, to tell what a format would cost"
    changes_state_dict = True
    Parameters: ClassVar[type[Settings]] = RoundedMantissaParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"bits": 2}

    def sites(self, model: nn.Module) -> Sequence[Site]:
        found = []
        for path, module, role in linears(model):
            weight = module.weight
            skip = None if weight.is_floating_point() else f"its weight is {weight.dtype}, which has no mantissa"
            found.append(Site(path, role, skip=skip, nbytes=weight.nbytes))
        return found

    def apply(self, model: nn.Module) -> nn.Module:
        for site in self.step.sites:
            module = model.get_submodule(site.path)
            weight = module.weight
            with torch.no_grad():
                new = weight if weight.is_meta else rounded(weight, self.parameters.bits)
            self.journal.set(module, "weight", nn.Parameter(new.detach().clone(), requires_grad=weight.requires_grad))
        self.say(backend="torch", note=f"weights keep {self.parameters.bits} bits of mantissa; nothing is saved yet.")
        return model
