"""`tensor_compression`: weights in fewer bits, for every Linear and fused expert tensor that can bear it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.coverage import coverage_of
from inference_pio.anatomy.parts import carries_hooks
from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from inference_pio.anatomy.tied_head import TiedHead, tied_head
from inference_pio.anatomy.walk import experts, linears
from inference_pio.cache.kv_format import NONE, kv_format_named
from inference_pio.calibration.allocation import KEPT, Choice
from inference_pio.calibration.candidates import MIXED, choices_of, form_of, forms_in, is_one_matrix
from inference_pio.calibration.mixed import bounds_of, foretold, mix_formats, told_of
from inference_pio.calibration.rounding import Form, Rounded, round_calibrated
from inference_pio.calibration.scaled_layer import replace_parameters
from inference_pio.calibration.scaling import scale_calibrated
from inference_pio.calibration.source import CalibrationSource, calibration_source, token_windows
from inference_pio.compat import ties_without
from inference_pio.contract.byte_size import in_words
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.decoding.coded_generate import KV_CACHE, code_the_cache, coded_calls, kv_decision, kv_sites, said_of
from inference_pio.errors import InvalidModel, PlanError, UnknownName
from inference_pio.formats.compressed_embedding import why_no_table
from inference_pio.formats.compressed_experts import CompressedExperts, experts_layout
from inference_pio.formats.compressed_linear import GROUP
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.formats.known import KnownFormat, format_named, known_formats
from inference_pio.kernels.dynamic_linear import FEWEST_ROWS, STEP, why_not_dynamic
from inference_pio.kernels.fp8 import FP8
from inference_pio.kernels.triton.row_support import MOST_ROWS
from inference_pio.measure.target import max_positions
from inference_pio.sources.progress import share_bar

KEPT_ROLES = {
    "head": "the head is kept: its rounding reaches the output directly (head=true compresses it)",
    "embedding": "embeddings are kept: a lookup gains nothing from fewer bits (a tied one goes with its head)",
    "router": "routers are kept: a rounded router sends tokens to other experts",
    "vision": "the vision tower is kept (targets=['vision'] compresses it)",
    "adapter": "adapters are kept: they are small and may be trained",
}
ON_REQUEST = frozenset({"head", "vision"})
"""Kept roles that are compressed where the targets name them."""
HEAD = "int8"
"""The format of a head that is asked for without one."""
TARGETS = ("target_bytes", "compression_ratio")
DYNAMIC = {"int8": torch.int8, "fp8": FP8}
WINDOW = 1024


class TensorCompressionParameters(Settings):
    """`format` is how weights are stored, in groups of `group_size` inputs where it has groups.

    `targets` are roles or path patterns, `skip` path patterns; `head` is compressed on request, in int8 or the
    format named, and with it an embedding that it is tied to. Where less than `least_share` of the parameters can
    be compressed, nothing is. `calibration` rounds with inputs in mind, learned from `tokens` tokens of `text`:
    "gptq" makes up for what is lost column by column, "awq" gives large inputs finer steps by scales that norms and
    neighbours take in. `kv_cache` is how `generate` keeps keys and values. `activations` become eight bits too,
    token by token, where a prompt is long enough to be faster so; they go with weights of the same kind. "mixed"
    gives each layer a format by what it loses on that text, so that all weights of the model take at most
    `target_bytes`, or that `compression_ratio` of the bytes of those that are compressed is saved.
    """

    format: str = "int8"
    group_size: Literal[32, 64, 128] | None = None
    targets: list[str] | None = None
    skip: list[str] = Field(default_factory=list)
    head: bool | str = False
    least_share: float = Field(default=0.0, ge=0, le=1)
    calibration: Literal["none", "gptq", "awq"] = "none"
    text: list[str] | list[list[int]] | None = None
    tokens: int = Field(default=32768, ge=1)
    activations: Literal["none", "int8", "fp8"] = "none"
    kv_cache: str = NONE
    target_bytes: int | None = Field(default=None, ge=1)
    compression_ratio: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _mixed_by_target(cls, given: Any) -> Any:
        """A target without a format asks for the only one that keeps to it."""
        asks = isinstance(given, dict) and any(given.get(name) is not None for name in TARGETS)
        return {"format": MIXED, **given} if asks else given

    @field_validator("kv_cache")
    @classmethod
    def _known_cache(cls, name: str) -> str:
        try:
            return kv_format_named(name)
        except UnknownName as error:
            raise ValueError(str(error)) from None

    @field_validator("format", "head")
    @classmethod
    def _known(cls, name: bool | str) -> bool | str:
        try:
            if isinstance(name, str) and name != MIXED:
                format_named(name)
        except UnknownName as error:
            raise ValueError(str(error)) from None
        return name

    @model_validator(mode="after")
    def _fits(self) -> TensorCompressionParameters:
        if reason := self._why_not_mixed():
            raise ValueError(reason)
        if self.group_size is not None and not any(known.linear.grouped for known in self.formats):
            raise ValueError(f"group_size={self.group_size} is for formats with groups (int4), not for {self.format}")
        if self.calibration != "none" and self.main.linear.exact:
            raise ValueError(f"{self.format} rounds nothing, so there is nothing to calibrate: leave calibration out")
        if self.activations not in ("none", *(known.linear.activations for known in self.formats)):
            raise ValueError(
                f"activations={self.activations!r} are multiplied with weights in {self.activations}, and format is "
                f"{self.format!r}: choose format={self.activations!r}, or leave activations out"
            )
        if self.text is not None and self.calibration == "none" and not self.mixed:
            raise ValueError(
                "a calibration text is given and calibration is 'none': choose calibration='gptq' or 'awq'"
            )
        return self

    def _why_not_mixed(self) -> str | None:
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        if self.head == MIXED:
            return f"a head is {MIXED} where the format is: format={MIXED!r}, head=true"
        if not self.mixed:
            return f"{targets[0]} is what format={MIXED!r} keeps to, not {self.format}" if targets else None
        if len(targets) != 1:
            given = "both are given" if targets else "none is given"
            return f"format={MIXED!r} keeps to target_bytes or to compression_ratio, and {given}"
        if self.group_size is not None:
            return f"format={MIXED!r} chooses groups by itself: leave group_size out"
        return None

    @property
    def mixed(self) -> bool:
        return self.format == MIXED

    @property
    def main(self) -> KnownFormat:
        """The format of what is not named apart; of mixed ones, that which holds every layer."""
        return format_named(HEAD if self.mixed else self.format)

    @property
    def head_format(self) -> str | None:
        """The format that a head has to itself; where formats are mixed, only one that is named."""
        return self.head or None if isinstance(self.head, str) else HEAD if self.head and not self.mixed else None

    @property
    def of_head(self) -> KnownFormat:
        return format_named(self.head_format) if self.head_format else self.main

    @property
    def formats(self) -> list[KnownFormat]:
        return [self.main, *([format_named(self.head_format)] if self.head_format else [])]

    @property
    def group(self) -> int:
        return self.group_size or GROUP


class TensorCompression(OptimizationInterface):
    """Weights as codes with scales; activations stay as they are, the model's dtype too."""

    name = "tensor_compression"
    optimization_type = OptimizationType.MEMORY
    stage = Stage.STORAGE
    summary = "weights as int8, int4, fp8, or exactly in 12 bits: Linears and fused experts"
    exactness = "approximate"
    changes_state_dict = True
    Parameters: ClassVar[type[Settings]] = TensorCompressionParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"kv_cache": "int8"}

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self._rounded: Rounded | None = None
        if self.parameters.calibration == "none" and not self.parameters.mixed:
            self.weights_read = "site by site"

    def sites(self, model: nn.Module) -> Sequence[Site]:
        cache = self.parameters.kv_cache
        return [*_weight_sites(model, self.parameters), *(kv_sites(model, cache) if cache != NONE else ())]

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        asked = self.parameters
        caches, sites = [site for site in sites if site.role == KV_CACHE], _of_weights(sites)
        covered = coverage_of(model, {site.path for site in sites})
        if covered.share < asked.least_share:
            raise PlanError(
                f"tensor_compression would compress {covered}, and least_share asks for {asked.least_share:.1%} of the "
                "parameters: the plan tells why the others are kept. Name more targets, or a smaller least_share."
            )
        grouped = asked.mixed or asked.main.linear.grouped
        decision: dict[str, Any] = {"format": asked.format, "scale": "group" if grouped else "row"}
        if any(known.linear.grouped for known in asked.formats):
            decision["group_size"] = asked.group
        others = {site.path: asked.head_format for site in sites if site.role == "head" and asked.head_format}
        tied = tied_head(model)
        if tied is not None and any(site.path == tied.head for site in sites):
            others[tied.head] = asked.of_head.linear.format
            decision["tied"] = {tied.head: tied.embedding}
        if others:
            decision["formats"] = others
        if asked.activations != "none":
            if reason := why_not_dynamic(self.device, DYNAMIC[asked.activations]):
                raise PlanError(f"tensor_compression cannot code activations in {asked.activations} here: {reason}.")
            decision["activations"] = [asked.activations]
        if caches:
            decision["kv_cache"] = kv_decision(model, caches, asked.kv_cache)
        if asked.mixed and sites:
            choices = _choices(model, _of_layers(sites), decision)
            decision["mixed"] = bounds_of(model, choices, asked.target_bytes, asked.compression_ratio)
        return {**decision, "coverage": covered.to_json()}

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        for site in _of_layers(sites):
            for name, weight in model.get_submodule(site.path).named_parameters():
                if not torch.isfinite(weight.detach().amax() - weight.detach().amin()):
                    raise InvalidModel(
                        f"{site.path}.{name} holds NaN or infinity, so it has no {self.parameters.format} form. "
                        "Check the checkpoint; nothing was touched."
                    )

    @property
    def runs_the_model(self) -> bool:
        return bool(self.parameters.calibration != "none" or self.parameters.mixed)

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        self._rounded, sites = None, _of_layers(sites)
        asked = self.parameters
        if not sites or (asked.calibration == "none" and not asked.mixed):
            return decision
        window = min(WINDOW, max_positions(model) or WINDOW)
        source = calibration_source(model, token_windows(asked.text), tokens=asked.tokens, window=window)
        if asked.mixed:
            decision = self._mixed(model, sites, decision, source)
        if asked.calibration == "none":
            return decision
        table = _tables(model, decision)
        every = {
            site.path: _form(model.get_submodule(site.path), site.path, decision)
            for site in sites
            if site.path not in table
        }
        forms = {path: form for path, form in every.items() if form and not form.kind.exact}
        with share_bar("rounding weights", model_bytes(model) > LONG_BYTES) as progress:
            calibrated = scale_calibrated if asked.calibration == "awq" else round_calibrated
            self._rounded = calibrated(model, forms, source, progress, settled=table)
        return {**decision, "rounding": self._rounded.to_json()}

    def _mixed(
        self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any], source: CalibrationSource
    ) -> dict[str, Any]:
        with share_bar("mixing formats", model_bytes(model) > LONG_BYTES) as progress:
            choices, budget = _choices(model, sites, decision), decision["mixed"]["budget_bytes"]
            found = mix_formats(model, choices, budget, source, progress, settled=_tables(model, decision))
        return {**decision, **forms_in(found.chosen), "mixture": found.to_json(model)}

    def apply(self, model: nn.Module) -> nn.Module:
        made, self._rounded = self._rounded, None
        decision = self.step.decision
        cache = decision.get("kv_cache", {"layers": ()})
        if "mixed" in decision and "mixture" not in decision:  # on a plan
            choices = _choices(model, _of_layers(self.step.sites), decision)
            decision = {**decision, **foretold(choices, decision["mixed"]["budget_bytes"])}
        tied: dict[str, str] = decision.get("tied", {})
        for site in self.arriving([site for site in self.step.sites if site.path not in cache["layers"]]):
            if site.path in tied:
                self._put_table(model, site.path, tied[site.path], decision, made)
            if site.path in (*tied, *tied.values()):
                continue
            module = model.get_submodule(site.path)
            form = _form(module, site.path, decision)
            found = made.modules.pop(site.path, None) if made is not None else None
            if form is not None:
                made_one = found or form.nearest(module)
                made_one.codes_activations = made_one.activations in decision.get("activations", ())
                self.journal.replace(module, made_one)
        for path, twin in made.modules.items() if made is not None else ():  # norms and routers that took scales in
            replace_parameters(self.journal, model.get_submodule(path), twin)
        if cache["layers"]:
            code_the_cache(self.journal, model, cache)
            self.say(backend=f"{cache['format']} cache, weights as they are", note=said_of(cache))
        if len(self.step.sites) > len(cache["layers"]):
            self._tell(model)
        return model

    def _put_table(
        self, model: nn.Module, head: str, embedding: str, decision: Mapping[str, Any], made: Rounded | None
    ) -> None:
        """One table of codes in the place of an embedding and the head that is tied to it, which has nothing that the
        library could tie from now on."""
        modules = made.modules if made is not None else _tables(model, decision)
        table, layer = modules.pop(embedding), modules.pop(head)
        layer.codes_activations = layer.activations in decision.get("activations", ())
        for part, attribute, ties in list(ties_without(model, head, embedding)):
            self.journal.set(part, attribute, ties)
        self.journal.replace(model.get_submodule(embedding), table)
        self.journal.replace(model.get_submodule(head), layer)

    def report(self, model: nn.Module) -> dict[str, Any]:
        calls = coded_calls(model)
        return {"kv_cache": calls.to_json()} if calls else {}

    def _tell(self, model: nn.Module) -> None:
        dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.bfloat16)
        mixed = self.step.decision["format"] == MIXED
        kind = self.parameters.main.linear
        self.say(backend=kind.backend(self.device, dtype), note=kind.cost(self.device, dtype))
        mixtures = [one for one in model.modules() if isinstance(one, CompressedExperts)]
        if quick := sum(one.takes_two_launches(self.device, dtype) for one in mixtures):
            self.say(note=f"experts that up to {MOST_ROWS} tokens choose are two launches a layer, in {quick} layers.")
        for asked in self.step.decision.get("activations", ()):
            reason = why_not_dynamic(self.device, DYNAMIC[asked])
            self.say(note=f"activations stay as they are: {reason}." if reason else _told_of_activations(asked))
        for note in told_of(self.step.decision) if mixed else ():
            self.say(note=note)
        if kind.exact:
            self.say(note=f"{kind.format} holds every bit of the weights: what is computed with them is what it was.")
        for head, embedding in self.step.decision.get("tied", {}).items():
            self.say(note=_told_of_table(model, head, embedding))
        if "coverage" in self.step.decision:
            self.say(note=_told(self.step.decision.get("mixture", self.step.decision)["coverage"]))
        if lost := Chosen(self.parameters.targets, self.parameters.skip).unmatched(roles_of(model)):
            self.say(note=f"nothing in this model is meant by {', '.join(map(repr, lost))}.")
        rounding = self.step.decision.get("rounding")
        if rounding:
            kept, all_groups = len(rounding["kept"]), len(rounding["kept"]) + len(rounding["rounded_to_nearest"])
            before, after = rounding["held_out_divergence"].values()
            self.say(
                note=f"calibrated rounding is kept in {kept} of {all_groups} layers: on held-out text the divergence "
                f"falls from {before:.3g} to {after:.3g}."
            )
            for reason, count in Counter(rounding.get("not_scaled", {}).values()).items():
                self.say(note=f"channels are not scaled in {count} places: {reason}")
        elif self.parameters.calibration != "none":
            self.say(note="which layers keep the calibrated rounding is decided when it is applied, by held-out text.")


def _told_of_activations(kind: str) -> str:
    return (
        f"activations become {kind} beside weights in {kind}, each token by itself, in products of {FEWEST_ROWS} "
        f"tokens or more whose sizes are multiples of {STEP}; fewer keep theirs."
    )


def _told_of_table(model: nn.Module, head: str, embedding: str) -> str:
    table: Any = model.get_submodule(embedding)
    plain = table.num_embeddings * table.embedding_dim * table.dtype.itemsize
    held = sum(tensor.nbytes for tensor in table.held("weight"))
    return (
        f"{head} is tied to {embedding}: one table in {table.format} serves both, {in_words(held)} in the place of "
        f"{in_words(plain)}; rows become weights as they are looked up."
    )


LONG_BYTES = 64 * 2**20
"""A model of more is told how far its rounding has come."""


def model_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _told(coverage: Mapping[str, Any]) -> str:
    parts = [f"{role} {part['parameters'] / part['of']:.0%}" for role, part in coverage["roles"].items() if part["of"]]
    of_parameters, of_bytes = coverage["share_of_parameters"], coverage["share_of_bytes"]
    return f"{of_parameters:.1%} of the parameters and {of_bytes:.1%} of the bytes are compressed: {', '.join(parts)}."


def _form(module: nn.Module, path: str, decision: Mapping[str, Any]) -> Form | None:
    """What a layer is to become; None for one that a mixture keeps."""
    name = decision.get("formats", {}).get(path, decision["format"])
    group = decision.get("groups", {}).get(path, decision.get("group_size", GROUP))
    return None if name == KEPT else form_of(name, group, module)


def _tables(model: nn.Module, decision: Mapping[str, Any]) -> dict[str, CompressedModule]:
    """What embeddings and the heads that are tied to them are to become, by path: rounded to the nearest, since what a
    look-up gives has no inputs to be rounded for."""
    found: dict[str, CompressedModule] = {}
    for head, embedding in decision.get("tied", {}).items():
        known = format_named(decision["formats"][head])
        assert known.embedding is not None  # else the head was no site
        table = known.embedding.from_embedding(model.get_submodule(embedding))
        found |= {embedding: table, head: table.tied(known.linear, model.get_submodule(head))}
    return found


def _choices(model: nn.Module, sites: Sequence[Site], decision: Mapping[str, Any]) -> dict[str, list[Choice]]:
    """What each layer may become; one that is named apart, that alone."""
    apart = decision.get("formats", {})
    return {
        site.path: choices_of(
            model.get_submodule(site.path),
            (apart[site.path], decision.get("group_size", 0)) if site.path in apart else None,
        )
        for site in sites
    }


def _of_weights(sites: Sequence[Site]) -> list[Site]:
    return [site for site in sites if site.role != KV_CACHE]


def _of_layers(sites: Sequence[Site]) -> list[Site]:
    """Without an embedding, which goes with the head that is tied to it."""
    return [site for site in _of_weights(sites) if site.role != "embedding"]


def _weight_sites(model: nn.Module, asked: TensorCompressionParameters) -> Iterator[Site]:
    shared, tied = shared_weights(model), tied_head(model)
    chosen = Chosen(asked.targets, asked.skip)
    acted, tables = set(), set()
    for path, module, role in (*linears(model), *experts(model)):
        acted.add(path)
        skip = _why_not(path, module, role, asked, chosen)
        if tied is None or path != tied.head:
            yield _site(path, module, role, skip or why_shared(module.parameters(), shared))
        elif skip := skip or _why_not_tied(model, tied, asked):
            yield _site(path, module, role, skip)
        else:
            tables.add(tied.embedding)
            yield replace(_site(path, module, role, None), nbytes=0)  # its weight is told where it is first held
    for path, role in roles_of(model).items():
        module = model.get_submodule(path)
        if path not in acted and any(
            parameter.dim() > 1 for parameter in module._parameters.values() if parameter is not None
        ):
            kept = None if role == "head" and _wants_head(asked, chosen) else KEPT_ROLES.get(role)
            skip = None if path in tables else kept or f"{type(module).__name__} has no compressed form"
            yield _site(path, module, role, skip)


def _site(path: str, module: nn.Module, role: str, skip: str | None) -> Site:
    nbytes = sum(parameter.nbytes for parameter in module.parameters())
    if not skip and not path:
        skip = "it is the model itself, which has no place to put another module in"
    return Site(path, role, claims=frozenset({"weights.storage"}), skip=skip, nbytes=nbytes)


def _why_not(path: str, module: nn.Module, role: str, asked: TensorCompressionParameters, chosen: Chosen) -> str | None:
    wanted = _wants_head(asked, chosen) if role == "head" else role in ON_REQUEST and chosen.by_role(role)
    if role in KEPT_ROLES and not wanted:
        return KEPT_ROLES[role]
    if reason := (Chosen(None, asked.skip) if role == "head" and asked.head else chosen).why_not(path, role):
        return reason
    if any(parameter.dim() > 1 and not parameter.numel() for parameter in module.parameters()):
        return "its weight is empty"
    if not all(parameter.is_floating_point() and parameter.element_size() > 1 for parameter in module.parameters()):
        return "its weights are stored in fewer bits already"
    if carries_hooks(module):
        return "it carries hooks of somebody else, which a new module would lose"
    if "forward" in module.__dict__ or hasattr(module, "parametrizations"):
        return "its forward or its weight is overridden"
    return _why_not_in(module, role, asked)


def _wants_head(asked: TensorCompressionParameters, chosen: Chosen) -> bool:
    return bool(asked.head) or bool(chosen.by_role("head"))


def _why_not_tied(model: nn.Module, tied: TiedHead, asked: TensorCompressionParameters) -> str | None:
    """Why one table of codes cannot serve a head and the embedding that it is tied to, or None."""
    if tied.left:
        return tied.left
    if reason := why_no_table(model.get_submodule(tied.embedding)):
        return f"its weight is the embedding's, which is kept: {reason}"
    if asked.of_head.embedding is None:
        ways = " or ".join(f"head={name!r}" for name, known in known_formats().items() if known.embedding)
        return (
            f"its weight is the embedding's, and {asked.of_head.linear.format} codes cannot be looked up row by row "
            f"({ways} compresses both)"
        )
    return Chosen(None, asked.skip).why_not(tied.embedding, "embedding")


def _why_not_in(module: nn.Module, role: str, asked: TensorCompressionParameters) -> str | None:
    """Why the format asked for cannot hold this layer."""
    known = asked.of_head if role == "head" else asked.main
    if is_one_matrix(module):
        weight: Any = module.weight
        columns = weight.shape[1 if isinstance(module, nn.Linear) else 0]
        return known.linear.why_not(columns, asked.group) or known.linear.why_not_module(module)
    kind: type[CompressedExperts] = known.experts
    return experts_layout(module) or kind.why_not_experts(module, asked.group) or kind.why_not_module(module)
