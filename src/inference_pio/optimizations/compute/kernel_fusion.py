"""`kernel_fusion`: norms, rotations, gates and additions as single kernels; layers of one input as one product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import nn

from inference_pio.anatomy.call_guards import put_forward
from inference_pio.anatomy.compiled_layer import compiled_forward, compiled_layers, why_it_failed
from inference_pio.anatomy.decoder import decoder_of
from inference_pio.anatomy.few_row_linears import decoder_linears, few_rows_forward, why_no_few_rows
from inference_pio.anatomy.fused_parts import (
    FEW_ROWS_FORWARDS,
    FORWARDS,
    MERGED_FORWARDS,
    MERGED_LAYERS,
    fused_parts,
)
from inference_pio.anatomy.merged_linears import Sharing, merge, why_separate
from inference_pio.compat import why_no_inductor
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.decoding.choice import choose_operations
from inference_pio.decoding.engine import Engine
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.prompt_runners import MOST_TOKENS
from inference_pio.decoding.runner import choose_runner
from inference_pio.decoding.takeover import engine_of, take_over
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.elementwise_backend import TRITON, choose_elementwise_backend
from inference_pio.kernels.elementwise_check import why_elementwise_fails
from inference_pio.kernels.triton.row_support import MOST_ROWS
from inference_pio.kernels.triton.support import supports_device

LEVELS = ("elementwise", "merged", "gemv", "graph")
"""Each level has those before it."""
SHOWN = {"norm": "norms", "mlp": "MLPs", "attention": "attentions", "decoder_layer": "decoder layers"}
DECODING = "decoding"
"""The role of the site that is the model itself, whose generate is taken over."""
COMPILED = "decoder_layer"
LINEAR = "linear"
"""The role of linear layers that multiply few rows by themselves."""
WHAT_IS_MERGED = {"mlp": "gate and up", "attention": "queries, keys and values"}


class KernelFusionParameters(Settings):
    """`level`: how far to go ("auto": all on GPUs and CPUs, merged elsewhere); `exact`: every bit as the library's.

    `provider`: "inductor" lets torch compile each decoder layer instead, also of models that our kernels do not know;
    it takes seconds at the first calls, and knows no levels.
    """

    provider: Literal["kernels", "inductor"] = "kernels"
    level: Literal["auto", "elementwise", "merged", "gemv", "graph"] = "auto"
    exact: bool = False

    @model_validator(mode="after")
    def _levels_are_of_kernels(self) -> KernelFusionParameters:
        if self.provider == "inductor" and (self.level != "auto" or self.exact):
            raise ValueError("provider='inductor' knows neither level nor exact: leave them out")
        return self


class KernelFusion(OptimizationInterface):
    """Fewer, larger kernels: what lies between two matrix products in one launch, products of one input in one.

    What is fused is told by the bits that the classes of a model compute; where a call is training, watched by hooks
    or traced, the library's own forward computes it.
    """

    name = "kernel_fusion"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.COMPUTATION
    summary = "norms, rotations, gates and additions fused; layers of one input merged; generate in whole steps"
    exactness = "exact up to rounding"
    Parameters: ClassVar[type[Settings]] = KernelFusionParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"level": "graph"}

    def sites(self, model: nn.Module) -> Sequence[Site]:
        if self.parameters.provider == "inductor":
            reason = why_no_inductor(self.device.type)
            return [Site(path, COMPILED, skip=skip or reason, whole=False) for path, _, skip in compiled_layers(model)]
        merging = self._reaches("merged") and not self.parameters.exact
        whole = [Site("", DECODING, skip=_why_not_decoded(model), whole=False)] if self._reaches("graph") else []
        parts = [
            Site(path, role, skip=skip or _its_own_root(path), whole=merging and role in MERGED_LAYERS)
            for path, role, skip in ((part.path, part.role, part.skip) for part in fused_parts(model))
        ]
        return whole + parts + (list(_linear_sites(model, parts)) if self._multiplies_few_rows() else [])

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        if self.parameters.provider == "inductor":
            return {"provider": "inductor"}
        separate: dict[str, str] = {}
        if self._reaches("merged") and not self.parameters.exact:
            sharing = Sharing(model)
            for site in [site for site in sites if site.role in MERGED_LAYERS]:
                layers = MERGED_LAYERS[site.role](model.get_submodule(site.path))
                if reason := why_separate(layers, sharing):
                    separate[site.path] = reason
        decision: dict[str, Any] = {"level": self._level(), "separate": separate}
        if any(site.role == DECODING for site in sites):
            decision["operations"] = self._operations(model).name
        return decision

    @property
    def runs_the_model(self) -> bool:
        return False

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        if "operations" not in decision:
            return decision
        engine = Engine(self._operations(model))
        if reason := engine.why_never(model):
            if self.parameters.level == "graph":
                raise InvalidSetting(
                    f"level='graph' cannot serve this model: {reason}. Use level='merged'; nothing was touched."
                )
            decision["left_to_the_library"] = reason
        elif reason := engine.why_no_prompts:
            decision["prompts_left_to_the_library"] = reason
        return decision

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
        if self.parameters.provider == "inductor":
            return self._compile_layers(model)
        for level in LEVELS[: LEVELS.index(self.step.decision["level"]) + 1]:
            BUILT[level](self, model)
        self.say(backend=choose_elementwise_backend(self.device, _dtype_of(model)))
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        if self.parameters.provider == "inductor":
            failed = why_it_failed(model)
            return {"not_compiled": failed} if failed else {}
        engine = engine_of(model)
        if engine is None:
            return {}
        notes = {"notes": list(engine.notes)} if engine.notes else {}
        return {"decoding": {**engine.counts.to_json(), "held_bytes": engine.nbytes, **notes}}

    def _compile_layers(self, model: nn.Module) -> nn.Module:
        for site in self.step.sites:
            put_forward(self.journal, model.get_submodule(site.path), compiled_forward)
        self.say(
            backend="inductor",
            note=f"{len(self.step.sites)} decoder layers are compiled by torch, each at its first calls; one that "
            "cannot be is computed by the library, and the status says why",
        )
        return model

    def _operations(self, model: nn.Module) -> Operations:
        return choose_operations(self.device, _dtype_of(model), exact=self.parameters.exact)

    def _multiplies_few_rows(self) -> bool:
        """Outside of recorded steps: the host needs longer for a launch of ours than the GPU for the product (measured:
        25 against 37 tokens/s of Qwen3-4B), so level graph, whose steps have it anyway, leaves the rest to torch."""
        return self._level() == "gemv" and not self.parameters.exact and bool(supports_device(self.device))

    def _reaches(self, level: str) -> bool:
        return LEVELS.index(self._level()) >= LEVELS.index(level)

    def _level(self) -> str:
        """The level that is ordered, or the highest that serves here. Raises InvalidSetting for one that cannot."""
        level: str = self.parameters.level
        if level == "auto":
            return "graph" if self.device.type in ("cuda", "cpu") else "merged"
        if level == "gemv" and not (served := supports_device(self.device)):
            raise InvalidSetting(
                f"level='gemv' multiplies a few rows by a kernel that does not serve here: {served.said}. "
                "Use level='merged'; nothing was touched."
            )
        return level


def _fuse_elementwise(fusion: KernelFusion, model: nn.Module) -> None:
    """Norms, gates, rotations and additions, each one kernel."""
    parts = [site for site in fusion.step.sites if site.role not in (DECODING, LINEAR)]
    for site in parts:
        put_forward(fusion.journal, model.get_submodule(site.path), FORWARDS[site.role])
    counts = Counter(SHOWN[site.role] for site in parts)
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


def _multiply_few_rows(fusion: KernelFusion, model: nn.Module) -> None:
    """Products of a few rows by our kernel, whether layers are merged or alone."""
    if fusion.parameters.exact:
        fusion.say(note="a few rows are multiplied as the library does: exact=True, and our sums have another order")
        return
    if not (served := supports_device(fusion.device)):
        fusion.say(note=f"a few rows are multiplied by torch: {served.said}")
        return
    if not fusion._multiplies_few_rows():
        fusion.say(note="outside of recorded steps a few rows are multiplied by torch, which costs the host less")
        return
    separate, counts = fusion.step.decision["separate"], Counter[str]()
    alone = [model.get_submodule(site.path) for site in fusion.step.sites if site.role == LINEAR]
    for site in [site for site in fusion.step.sites if site.role in MERGED_LAYERS]:
        module = model.get_submodule(site.path)
        if site.path in separate:
            alone += [layer for layer in MERGED_LAYERS[site.role](module) if why_no_few_rows(layer) is None]
        else:
            put_forward(fusion.journal, module, FEW_ROWS_FORWARDS[site.role])
            counts["merged"] += 1
    for layer in alone:
        put_forward(fusion.journal, layer, few_rows_forward)
    fusion.say(
        note=f"up to {MOST_ROWS} rows are multiplied by our kernel: {counts['merged']} merged products, "
        f"{len(alone)} layers"
    )


def _decode_in_steps(fusion: KernelFusion, model: nn.Module) -> None:
    """The user's own `generate`, decoded by whole steps."""
    reason = fusion.step.decision.get("left_to_the_library")
    if "operations" not in fusion.step.decision or reason:
        fusion.say(note=f"generate is left to the library: {reason}" if reason else "generate is left to the library")
        return
    operations = fusion._operations(model)
    take_over(fusion.journal, model, Engine(operations))
    how = "recorded as CUDA graphs" if choose_runner(fusion.device) == "graph" else "called one by one"
    fusion.say(note=f"generate decodes in whole steps, {how}, computed by {operations.name}")
    if reason := fusion.step.decision.get("prompts_left_to_the_library"):
        fusion.say(note=f"prompts are read by the library's forward: {reason}")
    elif operations.reads_prompts:
        fusion.say(note=f"prompts of up to {MOST_TOKENS} tokens are read by recorded forwards, others by the library's")


BUILT: dict[str, Callable[[KernelFusion, nn.Module], None]] = {
    "elementwise": _fuse_elementwise,
    "merged": _merge_linears,
    "gemv": _multiply_few_rows,
    "graph": _decode_in_steps,
}
"""What each level adds to those before it."""


def _why_not_decoded(model: nn.Module) -> str | None:
    """Why a model's generate is left to the library, as far as its structure tells."""
    if not callable(getattr(model, "generate", None)):
        return "it has no generate to decode with"
    decoder = decoder_of(model)
    return f"its generate is left to the library: {decoder}" if isinstance(decoder, str) else None


def _linear_sites(model: nn.Module, parts: Sequence[Site]) -> Iterator[Site]:
    """Linear layers that are not among those of one input: these belong to the parts that may merge them."""
    merging = [site for site in parts if site.acts and site.role in MERGED_LAYERS]
    covered = {id(layer) for site in merging for layer in MERGED_LAYERS[site.role](model.get_submodule(site.path))}
    for path, layer in decoder_linears(model):
        if id(layer) not in covered:
            yield Site(path, LINEAR, skip=why_no_few_rows(layer) or _its_own_root(path))


def _its_own_root(path: str) -> str | None:
    return None if path else "it is the model itself, whose calls are watched"


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.bfloat16)
