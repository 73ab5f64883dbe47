"""Ways to run a forward of a long prompt: tokens in, the last position's logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import inference_pio
from benchmarks import weights
from benchmarks.arms import narrow
from benchmarks.arms.ours import sdpa_backends
from benchmarks.arms.room import Room
from inference_pio.decoding.takeover import engine_of
from inference_pio.measure import weight_bytes

Forward = Callable[[Tensor, int], Tensor]
DENSE_TOKENS, SMOKE_DENSE_TOKENS, SMOKE_DENSE_BELOW = 2048, 12, 16
CALIBRATION_TOKENS = 16384


@dataclass(frozen=True)
class Pattern:
    """The optimization by whose `name` keys are left out of long prompts; `always`: of every call, whatever is read."""

    name: str
    always: bool

    def dense_tokens(self, smoke: bool) -> int:
        """A prompt that the pattern leaves dense."""
        return SMOKE_DENSE_TOKENS if smoke else DENSE_TOKENS

    def why_wrong(self, told: Mapping[str, Any]) -> list[str]:
        """What is wrong with what the pattern counted of long prompts."""
        served, left = told.get("sparse_calls", {}), told.get("dense_calls", {})
        if not served and not left:
            return [f"{self.name} counted no call"]
        if self.always and (left or not served.get("prefill")):
            return [f"{self.name} served {served} and left {left}"]
        return []


@dataclass(frozen=True)
class PrefillArm:
    """`make(model, room)` gives a function (tokens [1, S], keep) -> logits [keep, V]. `exactness` names the noise that
    its check allows, or, with a `pattern`, tells that its logits are not held against the plain model's. `prepare`
    changes weights before the plain answers are asked for, where random ones would not bear what the system does."""

    label: str
    make: Callable[[nn.Module, Room], Forward]
    exactness: str = "rounding"
    gpu_only: bool = False
    pattern: Pattern | None = None
    prepare: Callable[[nn.Module], None] | None = None

    def unavailable(self, cuda: bool) -> str | None:
        return "needs an NVIDIA GPU" if self.gpu_only and not cuda else None


def forward(model: Any) -> Forward:
    @torch.no_grad()
    def run(tokens: Tensor, keep: int) -> Tensor:
        return model(input_ids=tokens, use_cache=True, logits_to_keep=keep).logits[0]  # type: ignore[no-any-return]

    return run


def _sdpa(which: str) -> Callable[[nn.Module, Room], Forward]:
    def make(model: nn.Module, room: Room) -> Forward:
        from torch.nn.attention import sdpa_kernel

        inner, backends = forward(model), sdpa_backends(which)

        def run(tokens: Tensor, keep: int) -> Tensor:
            with sdpa_kernel(backends):
                return inner(tokens, keep)

        return run

    return make


def _compiled(model: nn.Module, room: Room) -> Forward:
    options = room.compiling({"dynamic": False})
    return forward(model if options is None else torch.compile(model, **options))


def _profile(name: str) -> Callable[[nn.Module, Room], Forward]:
    def make(model: nn.Module, room: Room) -> Forward:
        inference_pio.optimize(model, name)
        return forward(model)

    return make


def generate(model: Any) -> Forward:
    """Through the user's own call: one new token, with the logits that it was chosen by."""

    def run(tokens: Tensor, keep: int) -> Tensor:
        asked: dict[str, Any] = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        out = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=False, **asked)
        return out.logits[0]  # type: ignore[no-any-return]

    return run


def _generating(name: str, *, recorded: bool = True) -> Callable[[nn.Module, Room], Forward]:
    """A profile's `generate`; without what records prompts, if so."""

    def make(model: nn.Module, room: Room) -> Forward:
        inference_pio.optimize(model, name)
        engine = engine_of(model)
        if engine is not None and not recorded:
            vars(engine.operations)["reads_prompts"] = False
        return generate(model)

    return make


def _fused(level: str) -> Callable[[nn.Module, Room], Forward]:
    """`kernel_fusion` alone."""

    def make(model: nn.Module, room: Room) -> Forward:
        given = {"kernel_fusion": {"level": level}}
        inference_pio.get_optimization_manager().apply_optimizations(model, ["kernel_fusion"], parameters=given)
        return forward(model)

    return make


def _compressed(**asked: Any) -> Callable[[nn.Module, Room], Forward]:
    """Weights in a format, and perhaps activations, beside exact attention and fused elementwise kernels."""

    def make(model: nn.Module, room: Room) -> Forward:
        how = asked | ({"group_size": 32} if room.smoke and asked["format"] == "int4" else {})
        given = {"kernel_fusion": {"level": "elementwise"}, "tensor_compression": how}
        manager = inference_pio.get_optimization_manager()
        manager.apply_optimizations(model, ["tensor_compression", "flash_attention", "kernel_fusion"], parameters=given)
        room.notes += [f"{receipt.name}: {note}" for receipt in manager.get_receipts(model) for note in receipt.notes]
        return forward(model)

    return make


def _named(*names: str, **given: dict[str, Any]) -> Callable[[nn.Module, Room], Forward]:
    """Optimizations by name; where a smoke run's prompts are short, in pieces of a few tokens."""

    def make(model: nn.Module, room: Room) -> Forward:
        parameters = given | {PIECES: SMOKE_PIECES} if room.smoke and PIECES in given else given
        manager = inference_pio.get_optimization_manager()
        manager.apply_optimizations(model, list(names), parameters=parameters)
        for receipt in manager.get_receipts(model):
            room.notes += [f"{receipt.name}: {receipt.backend}"] * bool(receipt.backend) + list(receipt.notes)
        room.notes.append(
            f"weights and the cache of {room.tokens} tokens take {_standing(model, room) / 1e9:.3f} GB: what the peak "
            "has beyond them is activations"
        )
        return forward(model)

    return make


def _standing(model: nn.Module, room: Room) -> float:
    return weight_bytes(model) + room.tokens * weights.cache_bytes_per_token(model, room.prompt[:, :CACHE_TOKENS])


PIECES = "activation_offloading"
SMOKE_PIECES = {"prefill_chunk_size": 8, "mlp_chunk_tokens": 4}
CACHE_TOKENS = 64


def _within(budget: str) -> dict[str, Any]:
    return {"max_activation_bytes": budget, "text_tokens": 32768}


def _sparse(name: str, **settings: Any) -> Callable[[nn.Module, Room], Forward]:
    """A pattern at its defaults, but for `settings`, beside exact attention and fused elementwise kernels."""

    def make(model: nn.Module, room: Room) -> Forward:
        words = words_of_smoke(name) if room.smoke else settings
        given = {"kernel_fusion": {"level": "elementwise"}, name: words}
        names = ["flash_attention", "kernel_fusion", name]
        manager = inference_pio.get_optimization_manager()
        manager.apply_optimizations(model, names, parameters=given)
        room.notes += [f"{receipt.name}: {note}" for receipt in manager.get_receipts(model) for note in receipt.notes]
        return forward(model)

    return make


def words_of_smoke(name: str) -> dict[str, Any]:
    """Settings by which a prompt of a few hundred tokens is a long one."""
    shared: dict[str, Any] = {"dense_below": SMOKE_DENSE_BELOW}
    return shared if name == "adaptive_sparse_attention" else shared | ALL_HEADS | {
        "sinks": 64, "window": 64, "calibration": [chance_tokens(512)],
    }  # fmt: skip


def chance_tokens(count: int) -> list[int]:
    """Tokens without a meaning, known to every model."""
    chance = torch.Generator().manual_seed(2)
    return torch.randint(2, 230, (count,), generator=chance).tolist()  # type: ignore[no-any-return]


ALL_HEADS = {"min_coverage": 0.0}
"""Random weights have no heads that look near: all are made to follow the pattern, and their coverage is told."""

ARMS: dict[str, PrefillArm] = {
    "plain": PrefillArm("forward, default SDPA", lambda model, room: forward(model)),
    "flash-only": PrefillArm("forward, SDPA flash only", _sdpa("flash"), gpu_only=True),
    "compile": PrefillArm("forward, torch.compile", _compiled),
    "pio-elementwise": PrefillArm("inference-pio kernel_fusion elementwise", _fused("elementwise")),
    "pio-merged": PrefillArm("inference-pio kernel_fusion merged", _fused("merged")),
    "pio-sparse": PrefillArm(
        "inference-pio sparse_attention, all heads (128 sinks, a window of 2048), flash_attention, elementwise",
        _sparse("sparse_attention", **ALL_HEADS, calibration=[chance_tokens(CALIBRATION_TOKENS)]),
        "a pattern",
        pattern=Pattern("sparse_attention", always=True),
    ),
    "pio-adaptive": PrefillArm(
        "inference-pio adaptive_sparse_attention, flash_attention, elementwise",
        _sparse("adaptive_sparse_attention"),
        "a pattern",
        pattern=Pattern("adaptive_sparse_attention", always=False),
    ),
    "pio-flash": PrefillArm("inference-pio flash_attention", _named("flash_attention")),
    "pio-pieces": PrefillArm(
        "inference-pio flash_attention, activation_offloading in 640 MB",
        _named("flash_attention", PIECES, activation_offloading=_within("640MB")),
    ),
    "pio-pieces-4096": PrefillArm(
        "the same in 720 MB, which are pieces of 4096 tokens",
        _named("flash_attention", PIECES, activation_offloading=_within("720MB")),
    ),
    "pio-int4": PrefillArm("inference-pio int4 weights in groups of 128", _compressed(format="int4"), "int4"),
    "pio-int8-activations": PrefillArm(
        "inference-pio int8 weights and activations", _compressed(format="int8", activations="int8"), "int8 twice"
    ),
    "pio-fp8-activations": PrefillArm(
        "inference-pio fp8 weights and activations",
        _compressed(format="fp8", activations="fp8"),
        "fp8 twice",
        gpu_only=True,
    ),
    "pio-pruned": PrefillArm(
        "inference-pio three quarters of the MLPs' channels, kernel_fusion elementwise",
        narrow.pruned_forward(forward),
        prepare=narrow.of_fewer_channels,
    ),
    "pio-lossless": PrefillArm("inference-pio lossless", _profile("lossless")),
    "pio-balanced": PrefillArm("inference-pio balanced", _profile("balanced"), "int8"),
    "generate": PrefillArm("generate", lambda model, room: generate(model)),
    "pio-generate-lossless": PrefillArm("inference-pio lossless, generate", _generating("lossless")),
    "pio-generate-unrecorded": PrefillArm(
        "the same, prompts by the library's forward", _generating("lossless", recorded=False)
    ),
    "pio-generate-balanced": PrefillArm("inference-pio balanced, generate", _generating("balanced"), "int8"),
    "pio-generate-performance": PrefillArm("inference-pio performance, generate", _generating("performance"), "int4"),
}
