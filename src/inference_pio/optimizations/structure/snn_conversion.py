"""`snn_conversion`: a decoder, or a plain net, whose products are sums of spikes, equal to those of its twin."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from inference_pio.anatomy.attention_function import add_pattern, run_pattern
from inference_pio.anatomy.attention_kind import attention_shape
from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.parts import is_experts
from inference_pio.anatomy.plain_calls import library_flash
from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.walk import attention_modules, experts, linears
from inference_pio.calibration.forward import forward
from inference_pio.calibration.largest_values import Largest, collect_largest
from inference_pio.calibration.left_as_found import left_as_found
from inference_pio.calibration.source import Batch, CalibrationSource, calibration_source, token_windows
from inference_pio.compat import knows_names
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.formats.compressed_experts import experts_layout
from inference_pio.kernels.spikes import Code
from inference_pio.kernels.spiking_product import why_not_exact
from inference_pio.measure.target import input_device, max_positions, synchronize
from inference_pio.sources.progress import share_bar
from inference_pio.spiking.attention import SPIKES, SpikingAttention, attend_with_spikes
from inference_pio.spiking.convert import spiking_form
from inference_pio.spiking.energy import energy
from inference_pio.spiking.module import SpikingModule
from inference_pio.spiking.plain_nets import host_operations, why_no_spiking_net
from inference_pio.spiking.proof import prove_equal, why_no_proof
from inference_pio.spiking.tally import Tally

PATTERN = frozenset({"attention.pattern"})
KEPT_ROLES = {
    "head": "the head is kept: what it gives is read by a sampler, not by neurons (targets=['head'] converts it)",
    "embedding": "embeddings are kept: a lookup multiplies nothing",
    "router": "routers stay analog: a spike more or less would send tokens to other experts",
    "vision": "the vision tower is kept (targets=['vision'] converts one whose `inputs` are pictures)",
    "adapter": "adapters are kept: they are small and may be trained",
}
ON_REQUEST = frozenset({"head", "vision"})
"""Kept roles that are converted where the targets name them."""
WINDOW, TIMED = 512, 64
"""Tokens of a window that thresholds are learned from, and of the prompt that is timed and proven on."""
LONG_BYTES = 64 * 2**20
"""A model of more is told how far its calibration has come."""
SLOWER = (
    "on a CPU or GPU this is no speed-up: every product is made once for each of {steps} time steps, in float64. On "
    "two CPU cores reference models take 11 to 34 times as long at 15 levels, 24 to 49 at 63 (docs/spiking.md)."
)


class SNNConversionParameters(Settings):
    """`levels` is how far neurons count, up and down; `coding` how spikes tell it: "rate" in as many time steps,
    "radix" in log2(levels + 1), where a spike of each step counts twice the next. More `time_steps` change nothing.

    Neurons reach twice as far as all but the share `outlier_ratio` of a channel's values; a second one tells what lies
    beyond (0: there is none, and they reach the largest). `targets` are roles or path patterns, `skip` path patterns.
    Thresholds are learned from `tokens` tokens of `text`; of a plain net, from `inputs`: a batch of what it is called
    with, as `tensor.tolist()` gives it. `prove` holds the model against its quantized twin, bit by
    bit, before the call returns.
    """

    levels: int = Field(default=15, ge=1, le=255)
    coding: Literal["rate", "radix"] = "radix"
    time_steps: int | None = Field(default=None, ge=1)
    outlier_ratio: float = Field(default=0.005, ge=0, lt=1)
    targets: list[str] | None = None
    skip: list[str] = Field(default_factory=list)
    prove: bool = False
    text: list[str] | list[list[int]] | None = None
    tokens: int = Field(default=8192, ge=1)
    inputs: list[Any] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _long_enough(self) -> SNNConversionParameters:
        if self.text is not None and self.inputs is not None:
            raise ValueError("text is for models of tokens, inputs for plain nets: give one of them")
        if self.code.steps < self.code.least_steps:
            raise ValueError(
                f"time_steps={self.time_steps} is too short for levels={self.levels} in {self.coding}, which take "
                f"{self.code.least_steps} steps: leave time_steps out, or choose fewer levels"
            )
        return self

    @property
    def code(self) -> Code:
        return Code(self.coding, self.levels, self.time_steps, second=self.outlier_ratio > 0)


class SNNConversion(OptimizationInterface):
    """Every linear layer, attention product and expert adds weights where spikes arrive; the rest stays on the host.

    Not a speed-up: for those who aim at event-driven hardware and want to see what a model loses and takes there.
    """

    name = "snn_conversion"
    optimization_type = OptimizationType.MODEL_STRUCTURE
    stage = Stage.STRUCTURE
    summary = "a spiking network for event-driven hardware, equal bit for bit to its quantized twin; slower here"
    exactness = "approximate"
    changes_state_dict = True
    Parameters: ClassVar[type[Settings]] = SNNConversionParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"text": [[1 + place * place % 96 for place in range(24)]]}

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self._largest: dict[str, Largest] | None = None
        self._source: CalibrationSource | None = None
        self._dense_seconds = 0.0

    def sites(self, model: nn.Module) -> Sequence[Site]:
        return list(_sites(model, self.parameters))

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        code = self.parameters.code
        return {"coding": code.coding, "levels": code.levels, "steps": code.steps}

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        if self.parameters.prove and (reason := why_no_proof(model)):
            raise InvalidSetting(f"snn_conversion cannot prove its spikes: {reason}. Nothing was touched.")
        for site in sites:
            for name, weight in model.get_submodule(site.path).named_parameters(recurse=False):
                if not torch.isfinite(weight.detach().amax() - weight.detach().amin()):
                    raise InvalidModel(f"{site.path}.{name} holds NaN or infinity: check the checkpoint.")

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        self._source = source = self._calibration(model)
        large = sum(parameter.nbytes for parameter in model.parameters()) > LONG_BYTES
        attention = [site.path for site in sites if site.claims]
        with share_bar("setting thresholds", large) as progress:
            layers = [site.path for site in sites if not site.claims]
            self._largest = collect_largest(model, source, layers, attention, progress)
        self._dense_seconds = _seconds(model, _beginning(source))
        told = {"name": source.name, "tokens": source.tokens, "sha256": source.digest}
        return {**decision, "calibration": told}

    def apply(self, model: nn.Module) -> nn.Module:
        add_pattern(SPIKES, attend_with_spikes)
        largest, self._largest = self._largest, None
        reached = None if largest is None else functools.partial(_reached, largest)
        tally, attention = Tally(), []
        for site in self.step.sites:
            module = model.get_submodule(site.path)
            made = spiking_form(site.path, module, self.parameters.code, self.parameters.outlier_ratio, reached)
            if isinstance(made, SpikingAttention):
                self.journal.set(module, SPIKES, made.tell(site.path, tally).train(module.training))
                attention.append(site.path)
            else:
                self.journal.replace(module, made.tell(site.path, tally))
        run_pattern(self.journal, model, attention, SPIKES)
        self._tell(model)
        source, self._source = self._source, None
        if source is not None:
            self._prove_and_time(model, source)
            tally.clear()
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        held = next((module for module in model.modules() if isinstance(module, SpikingModule)), None)
        if held is None or not held.tally.layers:
            return {}
        return {"time_steps": held.code.steps, **held.tally.to_json(), "energy": energy(held.tally.total())}

    def _calibration(self, model: nn.Module) -> CalibrationSource:
        asked = self.parameters
        if asked.inputs is None and not callable(getattr(model, "generate", None)):
            raise InvalidSetting(
                f"snn_conversion sets thresholds by what this {type(model).__name__} is called with, and it takes no "
                "tokens: give inputs=batch.tolist(). Nothing was touched."
            )
        if asked.inputs is None:
            window = min(WINDOW, max_positions(model) or WINDOW, max(asked.tokens, 2))
            return calibration_source(model, token_windows(asked.text), tokens=asked.tokens, window=window)
        kind = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
        name = next(iter(inspect.signature(model.forward).parameters))
        return calibration_source(model, [{name: torch.tensor(asked.inputs, dtype=kind)}])

    def _tell(self, model: nn.Module) -> None:
        code = self.parameters.code
        self.say(
            backend=f"spikes, {code.coding} coding, {code.levels} levels in {code.steps} steps",
            note=SLOWER.format(steps=code.steps),
        )
        left = ", ".join(host_operations(model, SpikingModule))
        self.say(note=f"softmax, gating, rotation and residuals stay on the host, and so do: {left}.")
        if lost := Chosen(self.parameters.targets, self.parameters.skip).unmatched(roles_of(model)):
            self.say(note=f"nothing in this model is meant by {', '.join(map(repr, lost))}.")

    def _prove_and_time(self, model: nn.Module, source: CalibrationSource) -> None:
        with left_as_found(model):
            if self.parameters.prove:
                proof = prove_equal(model, _beginning(source))
                self.step.decision["proof"] = proof
                numbers = " and ".join(f"{count} {name}" for name, count in proof["numbers"].items())
                self.say(note=f"proven equal to the quantized twin, bit for bit: {numbers}.")
            spiking = min(_seconds(model, _beginning(source)) for _ in range(2))
        self.say(
            note=f"measured here, on {self.device.type}: a forward takes {spiking / self._dense_seconds:.1f} times as "
            f"long as before, {spiking * 1e3:.3g} ms and not {self._dense_seconds * 1e3:.3g}."
        )


def _reached(largest: Mapping[str, Largest], name: str, but: float) -> Tensor | None:
    return largest[name].reached(but) if name in largest else None


def _beginning(source: CalibrationSource) -> Batch:
    """The first batch; of tokens, so many that a large model, slow as it is with spikes, need not be waited for."""
    first = source.batches[0]
    return {"input_ids": first["input_ids"][:, :TIMED]} if set(first) == {"input_ids"} else first


def _seconds(model: nn.Module, batch: Batch) -> float:
    """How long one forward takes."""
    with left_as_found(model):
        started = time.perf_counter()
        forward(model, batch)
        synchronize(input_device(model))
        return time.perf_counter() - started


def _sites(model: nn.Module, asked: SNNConversionParameters) -> Iterator[Site]:
    chosen, plain, roles = Chosen(asked.targets, asked.skip), why_no_spiking_net(model), roles_of(model)
    for path, module, role in (*linears(model), *experts(model), *_convolutions(model, roles)):
        skip = plain or _why_not(path, module, role, chosen, asked.code) or _why_read(model, path)
        yield Site(path, role, skip=skip, nbytes=sum(one.nbytes for one in module.parameters()))
    for path, module, role in attention_modules(model):
        yield Site(path, role, PATTERN, _why_not_attention(path, module, role, chosen), whole=False)
    for path, role in roles.items():
        if role == "router" and not isinstance(model.get_submodule(path), nn.Linear):
            yield Site(path, role, skip=KEPT_ROLES[role])


def _convolutions(model: nn.Module, roles: Mapping[str, str]) -> Iterator[tuple[str, nn.Module, str]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            yield path, module, roles[path]


def _why_not(path: str, module: nn.Module, role: str, chosen: Chosen, code: Code) -> str | None:
    if not path:
        return "it is the model itself, which has no place to put another module in"
    if role in KEPT_ROLES and not (role in ON_REQUEST and chosen.by_role(role)):
        return KEPT_ROLES[role]
    if reason := chosen.why_not(path, role):
        return reason
    weights = list(module.parameters())
    if not all(weight.is_floating_point() and weight.element_size() > 1 for weight in weights):
        return "its weights are stored in fewer bits already"
    if any(value for key, value in module.__dict__.items() if "_hooks" in key and not key.startswith("_is")):
        return "it carries hooks of somebody else, which a new module would lose"
    if "forward" in module.__dict__ or hasattr(module, "parametrizations"):
        return "its forward or its weight is overridden"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"it pads with {module.padding_mode}, not with zeros"
    if is_experts(module) and (reason := experts_layout(module)):
        return reason
    return why_not_exact(max(weights[0].shape[1:].numel(), weights[0].shape[-1]), code.reach)


def _why_read(model: nn.Module, path: str) -> str | None:
    """Why a layer must keep a weight: a module above asks for it by name (for its dtype, as a rule)."""
    above, _, name = path.rpartition(".")
    while True:
        holder = model.get_submodule(above)
        if knows_names(type(holder), name) and knows_names(type(holder), "weight"):
            return f"{type(holder).__name__} reads its weight"
        if not above:
            return None
        above = above.rpartition(".")[0]


def _why_not_attention(path: str, module: nn.Module, role: str, chosen: Chosen) -> str | None:
    if role in KEPT_ROLES and not chosen.by_role(role):
        return KEPT_ROLES[role]
    if reason := chosen.why_not(path, role):
        return reason
    if getattr(module, "config", None) is None:
        return "its attention does not go through the library's attention interface"
    if (name := library_flash(module)) is not None:
        return f"it runs {name}, whose calls are not made for spikes"
    if getattr(module, "is_cross_attention", False):
        return "it attends to another sequence"
    if getattr(module.config, "attn_logit_softcapping", None) or "sinks" in module._parameters:
        return "its scores are bounded or share their mass with sinks, which spikes do not know"
    return None if attention_shape(module) else "the width of its heads cannot be told from its attributes"
