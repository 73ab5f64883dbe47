"""`kernel_fusion`: norms, rotations, gates and additions as single kernels; layers of one input as one product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from inference_pio.anatomy.call_guards import put_forward
from inference_pio.anatomy.fused_parts import FORWARDS, MERGED_FORWARDS, MERGED_LAYERS, fused_parts
from inference_pio.anatomy.merged_linears import Sharing, merge, why_separate
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.elementwise_backend import TRITON, choose_elementwise_backend
from inference_pio.kernels.elementwise_check import why_elementwise_fails

LEVELS = ("elementwise", "merged", "gemv", "graph")
"""Each level has those before it."""
SHOWN = {"norm": "norms", "mlp": "MLPs", "attention": "attentions", "decoder_layer": "decoder layers"}
WHAT_IS_MERGED = {"mlp": "gate and up", "attention": "queries, keys and values"}


class KernelFusionParameters(Settings):
    """`level`: how far to go ("auto": all on a GPU, merged on a CPU); `exact`: every bit as the library computes it."""

    level: Literal["auto", "elementwise", "merged", "gemv", "graph"] = "auto"
    exact: bool = False


class KernelFusion(OptimizationInterface):
    """Fewer, larger kernels: what lies between two matrix products in one launch, products of one input in one.

    What is fused is told by the bits that the classes of a model compute; where a call is training, watched by hooks
    or traced, the library's own forward computes it.
    """

    name = "kernel_fusion"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.COMPUTATION
    summary = "norms, rotations, gates and additions fused; layers of one input merged into one product"
    exactness = "exact up to rounding"
    Parameters: ClassVar[type[Settings]] = KernelFusionParameters

    def sites(self, model: nn.Module) -> Sequence[Site]:
        merging = self._reaches("merged") and not self.parameters.exact
        return [
            Site(path, role, skip=skip or _its_own_root(path), whole=merging and role in MERGED_LAYERS)
            for path, role, skip in ((part.path, part.role, part.skip) for part in fused_parts(model))
        ]

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        separate: dict[str, str] = {}
        if self._reaches("merged") and not self.parameters.exact:
            sharing = Sharing(model)
            for site in [site for site in sites if site.role in MERGED_LAYERS]:
                layers = MERGED_LAYERS[site.role](model.get_submodule(site.path))
                if reason := why_separate(layers, sharing):
                    separate[site.path] = reason
        return {"level": self._level(), "separate": separate}

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        dtype = _dtype_of(model)
        if choose_elementwise_backend(self.device, dtype) == TRITON:
            widths = {len(model.get_submodule(site.path).weight) for site in sites if site.role == "norm"}  # type: ignore[arg-type]
            if reason := why_elementwise_fails(self.device, dtype, tuple(sorted(widths))):
                raise InvalidSetting(
                    f"a fused kernel fails its check on {self.device}: {reason}. Nothing was touched; "
                    "please report this device and these versions."
                )

    def apply(self, model: nn.Module) -> nn.Module:
        for level in LEVELS[: LEVELS.index(self.step.decision["level"]) + 1]:
            BUILT[level](self, model)
        self.say(backend=choose_elementwise_backend(self.device, _dtype_of(model)))
        return model

    def _reaches(self, level: str) -> bool:
        return LEVELS.index(self._level()) >= LEVELS.index(level)

    def _level(self) -> str:
        """The level that is ordered, or the highest that serves here. Raises InvalidSetting for one not built."""
        level: str = self.parameters.level
        if level == "auto":
            wanted = LEVELS if self.device.type == "cuda" else LEVELS[:2]
            return [name for name in wanted if name in BUILT][-1]
        if level not in BUILT:
            raise InvalidSetting(f"level={level!r} of kernel_fusion is not built yet: use one of {', '.join(BUILT)}.")
        return level


def _fuse_elementwise(fusion: KernelFusion, model: nn.Module) -> None:
    """Norms, gates, rotations and additions, each one kernel."""
    for site in fusion.step.sites:
        put_forward(fusion.journal, model.get_submodule(site.path), FORWARDS[site.role])
    counts = Counter(SHOWN[site.role] for site in fusion.step.sites)
    fusion.say(note=f"fused: {', '.join(f'{count} {what}' for what, count in counts.items())}")


def _merge_linears(fusion: KernelFusion, model: nn.Module) -> None:
    """Layers of one input, one product; their weights become views of one tensor, one set of layers after another."""
    parts = [site for site in fusion.step.sites if site.role in MERGED_LAYERS]
    if fusion.parameters.exact:
        fusion.say(note="layers of one input are kept separate: exact=True, and a larger product may round otherwise")
        return
    separate = fusion.step.decision["separate"]
    for site in parts:
        if site.path not in separate:
            module = model.get_submodule(site.path)
            merge(fusion.journal, MERGED_LAYERS[site.role](module))
            put_forward(fusion.journal, module, MERGED_FORWARDS[site.role])
    for role, count in Counter(site.role for site in parts if site.path not in separate).items():
        fusion.say(note=f"{WHAT_IS_MERGED[role]} are one product in {count} layers")
    for reason, count in Counter(separate.values()).items():
        fusion.say(note=f"layers of one input are kept separate in {count} places: {reason}")


BUILT: dict[str, Callable[[KernelFusion, nn.Module], None]] = {
    "elementwise": _fuse_elementwise,
    "merged": _merge_linears,
}
"""What each level adds to those before it."""


def _its_own_root(path: str) -> str | None:
    return None if path else "it is the model itself, whose calls are watched"


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.bfloat16)
