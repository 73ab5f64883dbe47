"""`flash_attention`: exact attention, each phase on a backend that a table names and a check here confirms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import nn

from inference_pio.anatomy.absorbed_decode import absorb, check_absorbed
from inference_pio.anatomy.attention_function import run_dense
from inference_pio.anatomy.attention_kind import AttentionKind, attention_kinds, word
from inference_pio.anatomy.exact_attention import Function, exact_attention, exact_vision_attention
from inference_pio.anatomy.latent_attention import latent_sites
from inference_pio.anatomy.served import FOR_INFERENCE_ALONE, Served
from inference_pio.anatomy.walk import attention_modules
from inference_pio.compat import add_attention_function, attention_name, cpu_flash_serves
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.attention_choice import FUSED, TRITON
from inference_pio.kernels.attention_serving import PassedOver, Serving, choose_serving, note_of_roles, notes_of

OURS = "inference_pio_exact"
MLA_DECODE = frozenset({"attention.mla_decode"})
OURS_PACKED = "inference_pio_vision_flash"
"""The library hands the pictures of a vision tower over in one call only to a function with "flash" in its name."""
Backend = Literal["auto", "cudnn", "flash", "efficient", "flex", "triton", "fused"]


class FlashAttentionParameters(Settings):
    """`backend` is an order; `use_triton` a preference, answered in the receipt."""

    backend: Backend = "auto"
    use_triton: bool = False

    @model_validator(mode="after")
    def _one_wish(self) -> FlashAttentionParameters:
        if self.use_triton and self.backend not in ("auto", TRITON):
            raise ValueError(f"use_triton=True and backend={self.backend!r} contradict each other: give one of them")
        return self

    @property
    def first(self) -> str | None:
        """The backend that stands before the table."""
        if self.backend != "auto":
            return self.backend
        return TRITON if self.use_triton else None


class FlashAttention(OptimizationInterface):
    """Attention through fused kernels: never the plain one by accident, exact up to rounding.

    Before the model is touched, each backend that a table names for this device, these heads and a phase of inference
    is held against a float32 reference here; one that fails is dropped with its reason, and the next best serves.
    """

    name = "flash_attention"
    optimization_type = OptimizationType.ATTENTION
    stage = Stage.COMPUTATION
    summary = "exact attention, each phase on the best kernel that passes a check here"
    exactness = "exact up to rounding"
    weights_read = "none"
    Parameters: ClassVar[type[Settings]] = FlashAttentionParameters
    _checked: dict[str, Any] | None = None

    def sites(self, model: nn.Module) -> Sequence[Site]:
        absorbed = {path for path, _, reason in latent_sites(model) if reason is None}
        return [
            Site(path, role, MLA_DECODE if path in absorbed else frozenset(), _why_not(module, model), whole=False)
            for path, module, role in attention_modules(model)
        ]

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        return self._checked or self._choose(model, sites, check=False)

    def checked_weights(self, sites: Sequence[Site]) -> Sequence[str]:
        return [site.path for site in sites if site.claims][:1]

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self._checked = self._choose(model, sites, check=True)
        for path in self.checked_weights(sites):
            check_absorbed(model.get_submodule(path))

    def apply(self, model: nn.Module) -> nn.Module:
        choices = self.step.decision["choices"]
        kinds = attention_kinds(model, {site.path for site in self.step.sites})
        for (kind, paths), choice in zip(kinds.items(), choices, strict=True):
            name = _function_for(kind, Serving.from_json(choice["serves"]))
            run_dense(self.journal, model, paths, name)
            self._absorb(model, paths, name)
        self._tell(list(kinds), choices)
        self._tell_of_latents(model)
        return model

    def _choose(self, model: nn.Module, sites: Sequence[Site], *, check: bool) -> dict[str, Any]:
        """The choice for every kind of attention there is. Raises InvalidSetting for an order that cannot be kept."""
        choices: list[dict[str, Any]] = []
        served: set[str] = set()
        passed: list[PassedOver] = []
        for kind in attention_kinds(model, {site.path for site in sites}):
            serving, over = _serving(kind, self.device, self.parameters.first, check=check)
            notes = notes_of(over) + _plain_note(kind, self.device)
            notes += [] if kind.shape is None else note_of_roles(kind.shape, self.device)
            choices.append({**kind.to_json(), "serves": serving.to_json(), "passed_over": notes})
            served |= serving.backends
            passed += over
        order = self.parameters.backend
        if broken := [one for one in passed if one.backend == order and (one.checked or order not in served)]:
            raise InvalidSetting(_cannot_be_kept(order, broken))
        return {"choices": choices}

    def _tell(self, kinds: Sequence[AttentionKind], choices: Sequence[dict[str, Any]]) -> None:
        servings = [Serving.from_json(choice["serves"]) for choice in choices]
        names = set().union(*(serving.backends for serving in servings))
        parts = [_said(kind, serving) for kind, serving in zip(kinds, servings, strict=True)]
        backend = next(iter(names)) if len(names) == 1 else "; ".join(dict.fromkeys(parts))
        self.say(backend=backend)
        for note in dict.fromkeys(note for choice in choices for note in choice["passed_over"]):
            self.say(note=note)
        if self.parameters.use_triton and TRITON not in names:
            self.say(note=f"use_triton is a preference: no Triton kernel serves here, {backend} does.")
        for name in sorted(names & set(FOR_INFERENCE_ALONE)):
            self.say(note=f"{name} serves inference: with gradients, dropout or torch.compile torch's own choice does.")

    def _absorb(self, model: nn.Module, paths: Sequence[str], name: str) -> None:
        """Let the caches of latent attention reach our function as they are."""
        claimed = {site.path for site in self.step.sites if site.claims}
        for path in paths:
            if path in claimed:
                absorb(self.journal, model.get_submodule(path), name)

    def _tell_of_latents(self, model: nn.Module) -> None:
        acting = {site.path: site for site in self.step.sites}
        reasons = [str(reason) for path, _, reason in latent_sites(model) if path in acting and not acting[path].claims]
        if absorbed := sum(bool(site.claims) for site in self.step.sites):
            layers = f"in {absorbed} layers"
            self.say(note=f"latent attention decodes absorbed {layers}: the cache is not expanded again each step")
        for reason in dict.fromkeys(reasons):
            layers = f"in {reasons.count(reason)} layers"
            self.say(note=f"latent attention expands its cache each step {layers}: {reason}")


def _why_not(module: nn.Module, model: nn.Module) -> str | None:
    config = getattr(module, "config", None)
    if config is None:
        return "its attention does not go through the library's attention interface"
    name = attention_name(config)
    if name is not None and "flash_attention" in name:
        return f"it already runs {name}"
    if any(getattr(one, "output_attentions", False) for one in (config, getattr(model, "config", None))):
        return "its configuration asks for attention weights (output_attentions), which eager attention alone makes"
    return None


def _serving(
    kind: AttentionKind, device: torch.device, first: str | None, *, check: bool
) -> tuple[Serving, list[PassedOver]]:
    if kind.shape is not None:
        return choose_serving(kind.shape, kind.dtype, device, kind.phases, first=first, check=check)
    reason = "the width of its heads cannot be told from its attributes"
    over = [] if first in (None, FUSED) else [PassedOver(str(first), phase, reason, False) for phase in kind.phases]
    return Serving(dict.fromkeys(kind.phases, ((0, FUSED),))), over


def _plain_note(kind: AttentionKind, device: torch.device) -> list[str]:
    """Where the CPU's flash kernel is not for these heads, torch's plain kernel computes; that is said."""
    if device.type != "cpu" or kind.shape is None:
        return []
    shape = kind.shape
    sizes = ((shape.heads, shape.head_dim), (shape.key_heads, shape.head_dim), (shape.key_heads, shape.value_dim))
    tensors = [torch.zeros(1, heads, 2, width, dtype=kind.dtype) for heads, width in sizes]
    if cpu_flash_serves(*tensors, causal=True):
        return []
    heads = f"heads of {shape.head_dim} and values of {shape.value_dim} in {word(kind.dtype)}"
    return [f"torch's flash kernel for the CPU does not take {heads}: its plain kernel computes these."]


_MADE: dict[str, Function] = {}


def _function_for(kind: AttentionKind, serving: Serving) -> str:
    """The name of the function that serves a kind: made and added to the library's table at first use."""
    told = json.dumps([kind.to_json(), serving.to_json()], sort_keys=True)
    mark = FUSED if serving.backends == {FUSED} else hashlib.sha256(told.encode()).hexdigest()[:10]
    name = f"{OURS_PACKED if kind.packed else OURS}_{mark}"
    if name not in _MADE:
        shape = kind.shape or HeadShape(1, 1, 0, 0)
        served = Served(serving, kind.dtype, shape.head_dim, shape.value_dim)
        _MADE[name] = exact_vision_attention(served) if kind.packed else exact_attention(served)
    add_attention_function(name, _MADE[name])
    return name


def _said(kind: AttentionKind, serving: Serving) -> str:
    said = serving.said(kind.shown)
    return said if " " in said else f"{'vision' if kind.vision else 'text'} {said}"


def _cannot_be_kept(order: str, broken: Sequence[PassedOver]) -> str:
    reasons = "; ".join(dict.fromkeys(one.reason for one in broken))
    phases = ", ".join(dict.fromkeys(one.phase for one in broken if one.checked))
    at = f" at {phases}" if phases else ""
    return f"backend={order!r} cannot serve{at} here: {reasons}. Use backend='auto' (or 'fused')."
