"""`flash_attention`: exact attention through a fused kernel that is chosen by name and said in the receipt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import nn

from inference_pio.anatomy.walk import attention_modules
from inference_pio.compat import (
    ATTENTION_KEY,
    add_attention_function,
    attention_name,
    cpu_flash_serves,
    library_attention,
)
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.attention import KERNELS, naive_attention

OURS = "inference_pio_exact"
ONLY_THE_LIBRARY_KNOWS = ("softcap", "position_bias", "cache", "s_aux")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
Backend = Literal["auto", "cudnn", "flash", "efficient", "fused"]


class FlashAttentionParameters(Settings):
    """`backend` is an order; `use_triton` a preference, answered in the receipt."""

    backend: Backend = "auto"
    use_triton: bool = False

    @model_validator(mode="after")
    def _one_wish(self) -> FlashAttentionParameters:
        if self.use_triton and self.backend != "auto":
            raise ValueError(f"use_triton=True and backend={self.backend!r} contradict each other: give one of them")
        return self


@dataclass(frozen=True)
class Choice:
    """Which kernel serves attention without a mask and which with one, and why."""

    plain: str
    masked: str
    reason: str

    @property
    def name(self) -> str:
        return f"{OURS}_{self.plain}_{self.masked}"

    def __str__(self) -> str:
        return self.plain if self.plain == self.masked else f"{self.plain}, {self.masked} where there is a mask"


class FlashAttention(OptimizationInterface):
    """Attention through a fused kernel: never the plain one by accident, exact up to rounding.

    The choice is tried on odd shapes against a float32 reference before the model is touched.
    """

    name = "flash_attention"
    optimization_type = OptimizationType.ATTENTION
    stage = Stage.COMPUTATION
    summary = "exact attention through a fused kernel chosen by name"
    exactness = "exact up to rounding"
    Parameters: ClassVar[type[Settings]] = FlashAttentionParameters

    def sites(self, model: nn.Module) -> Sequence[Site]:
        return [Site(path, role, skip=_why_not(module), whole=False) for path, module, role in attention_modules(model)]

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        choice = choose_backend(self.device, self.parameters.backend)
        return {"plain": choice.plain, "masked": choice.masked, "reason": choice.reason}

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        choice = choose_backend(self.device, self.parameters.backend)
        self_test(choice, self.device, next(model.parameters()).dtype)

    def apply(self, model: nn.Module) -> nn.Module:
        choice = Choice(**self.step.decision)
        add_attention_function(choice.name, _attention_through(choice))
        acting = {site.path for site in self.step.sites}
        configs: dict[int, tuple[Any, list[tuple[str, nn.Module]]]] = {}
        for path, module, _ in attention_modules(model):
            configs.setdefault(id(module.config), (module.config, []))[1].append((path, module))
        for config, users in configs.values():
            self._switch(config, [pair for pair in users if pair[0] in acting], len(users), choice.name)
        self.say(backend=str(choice), note=choice.reason)
        if self.parameters.use_triton:
            self.say(note=f"use_triton is a preference: no Triton kernel serves here, {choice} does.")
        return model

    def _switch(self, config: Any, acting: list[tuple[str, nn.Module]], users: int, name: str) -> None:
        """Switch a configuration that all its users share, or give single modules their own copy of it."""
        if len(acting) == users:
            self.journal.set(config, ATTENTION_KEY, name)
            return
        for _, module in acting:
            own = copy.copy(config)
            vars(own)[ATTENTION_KEY] = name
            self.journal.set(module, "config", own)


def choose_backend(device: torch.device, backend: str) -> Choice:
    """The kernels that serve on a device. Raises InvalidSetting for an order that cannot be kept there."""
    if device.type != "cuda":
        if backend in ("cudnn", "flash", "efficient"):
            raise InvalidSetting(
                f"backend={backend!r} needs an NVIDIA GPU, and this model is on {device.type}: "
                "use backend='auto' (or 'fused')."
            )
        return Choice("fused", "fused", "torch's fused attention; on the CPU it is a flash kernel")
    if backend == "auto":
        return Choice("flash", "efficient", "the flash kernel takes no mask; masked calls go to the efficient kernel")
    masked = "efficient" if backend == "flash" else backend
    return Choice(backend, masked, f"ordered by backend={backend!r}")


def self_test(choice: Choice, device: torch.device, dtype: torch.dtype) -> None:
    """Hold the chosen kernels against the float32 reference on odd shapes. Raises InvalidSetting where they differ."""
    generator = torch.Generator().manual_seed(0)
    for heads, key_heads, queries, keys in ((4, 2, 37, 37), (8, 4, 1, 33), (6, 6, 5, 5)):
        shapes = ((1, heads, queries, 64), (1, key_heads, keys, 64), (1, key_heads, keys, 64))
        q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        causal = queries == keys
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        mask[..., 0] = queries != keys
        mask[..., 0, 0] = True
        for kernel, seen, is_causal in ((choice.plain, None, causal), (choice.masked, mask, False)):
            _compare(kernel, (q, k, v), seen, is_causal, dtype)
    if device.type == "cpu" and not cpu_flash_serves(q, k, v, causal=False):
        raise InvalidSetting(f"torch's fused attention has no flash kernel for {dtype} on this CPU.")


def _compare(
    kernel: str,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    causal: bool,
    dtype: torch.dtype,
) -> None:
    got = KERNELS[kernel](*tensors, mask, causal=causal).float()
    query, key, value = tensors
    error = (got - naive_attention(query, key, value, mask, causal=causal)).abs().max().item()
    if not error <= TOLERANCE.get(dtype, 1e-5):
        raise InvalidSetting(
            f"the {kernel!r} attention kernel is off by {error:.2g} from the reference in {dtype} on this machine "
            f"(query {tuple(tensors[0].shape)}): choose another with parameters={{'backend': ...}}."
        )


_MADE: dict[str, Callable[..., Any]] = {}


def _attention_through(choice: Choice) -> Callable[..., Any]:
    """The attention function, in transformers' signature, of one choice; made once for each."""

    def attention(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
        is_causal: bool | None = None, **rest: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        if any(rest.get(name) is not None for name in ONLY_THE_LIBRARY_KNOWS):
            given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **rest}
            return library_attention()(module, query, key, value, attention_mask, **given)  # type: ignore[no-any-return]
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and attention_mask is None and query.shape[2] > 1
        kernel = KERNELS[choice.plain if attention_mask is None else choice.masked]
        out = kernel(query, key, value, attention_mask, causal=causal, scale=scaling, dropout=dropout)
        return out.transpose(1, 2).contiguous(), None

    return _MADE.setdefault(choice.name, attention)


def _why_not(module: nn.Module) -> str | None:
    config = getattr(module, "config", None)
    name = attention_name(config) if config is not None else None
    if config is None:
        return "its attention does not go through the library's attention interface"
    if name is not None and "flash_attention" in name:
        return f"it already runs {name}"
    return None
