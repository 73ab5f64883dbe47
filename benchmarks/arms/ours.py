"""inference-pio itself, through the user's own `model.generate`; and the library's SDPA with kernels left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import inference_pio
from benchmarks.arms.decoder import Decoded, Decoder, GenerateDecoder
from benchmarks.arms.problem import Unavailable
from benchmarks.arms.room import Room
from inference_pio.decoding.hosted_generate import hosted_calls
from inference_pio.decoding.takeover import engine_of
from inference_pio.streaming.hooks import stream_of

MORE_THAN_32K = 33000
"""Tokens whose cache gets room for 64K."""


def profile(name: str) -> Callable[[nn.Module, Room], Decoder]:
    def make(model: nn.Module, room: Room) -> Decoder:
        inference_pio.optimize(model, name)
        room.notes += _said(model)
        return GenerateDecoder(model)

    return make


def streamed(model: nn.Module, room: Room) -> Decoder:
    """Layers from pinned host memory or from disk, within a fifth of the weights' bytes on a GPU."""
    on_gpu = next(model.parameters()).is_cuda
    budget = {"gpu_budget": "20%"} if on_gpu else {"host_budget": "80%", "threads": 1}
    manager = inference_pio.get_optimization_manager()
    manager.apply_optimizations(model, ["disk_offloading"], parameters={"disk_offloading": budget})
    room.notes += [*_said(model), *manager.get_receipts(model)[-1].notes]
    return GenerateDecoder(model)


def within(budget: str, name: str | None = None) -> Callable[[nn.Module, Room], Decoder]:
    """Weights within so much of a GPU's memory, under a profile or as they are; the rest waits on the host."""

    def make(model: nn.Module, room: Room) -> Decoder:
        resident = GenerateDecoder(model).decode(room.prompt, 4 if room.smoke else 16)
        manager, on_gpu = inference_pio.get_optimization_manager(), next(model.parameters()).is_cuda
        if name is not None:
            inference_pio.optimize(model, name)
        given: dict[str, Any] = {"gpu_budget": budget} if on_gpu else {"host_budget": "80%", "threads": 1}
        manager.apply_optimizations(model, ["disk_offloading"], parameters={"disk_offloading": given})
        receipt = next(one for one in manager.get_receipts(model) if one.name == "disk_offloading")
        room.notes += [*_said(model), *receipt.notes]
        return StreamedDecoder(model, room, 1 / resident.tokens_per_s)

    return make


class StreamedDecoder(GenerateDecoder):
    """`generate` of a model that streams; the first call of several tokens tells what came over the link for each."""

    def __init__(self, model: nn.Module, room: Room, resident_s: float) -> None:
        super().__init__(model)
        self.room, self.resident_s, self._told = room, resident_s, False

    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        before = self._counts()
        done = super().decode(prompt, new_tokens, forced=forced, logits=logits)
        if not self._told and new_tokens > 1:
            self._told = True
            stream = stream_of(self.model)
            assert stream is not None, "what streams has a stream"
            counts = {key: value - before.get(key, 0) for key, value in self._counts().items()}
            self.room.notes.append(
                f"{new_tokens} tokens behind {prompt.shape[1]}: {counts}{_of_a_token(counts, new_tokens - 1)}; "
                f"resident, a token takes {self.resident_s * 1e3:.1f} ms; a pass brings "
                f"{stream.pass_bytes / 1e9:.3f} GB where all that streams is brought, and is bound by that over the "
                "link's GB/s, or by the resident time beside it"
            )
        return done

    def _counts(self) -> dict[str, float]:
        stream = stream_of(self.model)
        told = stream.to_json() if stream is not None else {}
        single = {key: value for key, value in told.items() if isinstance(value, int | float)}
        deeper = {key: one for key, one in told.items() if isinstance(one, dict)}
        nested = {f"{key}.{name}": value for key, one in deeper.items() for name, value in one.items()}
        return {**single, **nested}


def _of_a_token(counts: dict[str, float], steps: int) -> str:
    """Of experts in slots, what each step behind the prompt found there and what it copied."""
    chosen = counts.get("experts.hits", 0) + counts.get("experts.misses", 0)
    if not chosen or "experts.copied_bytes" not in counts:  # on a CPU experts are read from disk, not copied
        return ""
    share, copied = counts["experts.hits"] / chosen, counts["experts.copied_bytes"] / steps
    return (
        f" ({share:.1%} of chosen experts were in slots, {copied / 1e6:.1f} MB copied a step; weights here are random)"
    )


def fused(level: str, *, exact: bool = False) -> Callable[[nn.Module, Room], Decoder]:
    """`kernel_fusion` at a level, beside `flash_attention`."""

    def make(model: nn.Module, room: Room) -> Decoder:
        fuse(model, level, exact=exact)
        room.notes += _said(model)
        return EngineDecoder(model, room)

    return make


def fuse(model: nn.Module, level: str, *, exact: bool = False) -> None:
    given = {"kernel_fusion": {"level": level, "exact": exact}}
    names = ["flash_attention", "kernel_fusion"]
    inference_pio.get_optimization_manager().apply_optimizations(model, names, parameters=given)


def choosing(budget: int, **asked: Any) -> Callable[[nn.Module, Room], Decoder]:
    """Level graph whose heads read so many tokens at most, pages ranked by Quest's bounds; over weights in a format, if
    one is `asked` for. A sequence's first runs are dense, so what is checked here is those."""

    def make(model: nn.Module, room: Room) -> Decoder:
        given: dict[str, dict[str, Any]] = {
            "adaptive_sparse_attention": {"budget": 256 if room.smoke else budget, "page_scorer": "bounds"},
            "kernel_fusion": {"level": "graph"},
        }
        names = ["flash_attention", "adaptive_sparse_attention", "kernel_fusion"]
        if asked:
            given["tensor_compression"] = dict(asked)
            names = ["tensor_compression", *names]
        inference_pio.get_optimization_manager().apply_optimizations(model, names, parameters=given)
        room.notes += _said(model)
        return EngineDecoder(model, room)

    return make


def compressed(**asked: Any) -> Callable[[nn.Module, Room], Decoder]:
    """Level graph over weights or a cache in a format, each number rounded to the nearest; int4 in groups of 128."""

    def make(model: nn.Module, room: Room) -> Decoder:
        how = dict(asked)
        if how.get("format") == "int4":
            how["group_size"] = 32 if room.smoke else 128
        given: dict[str, dict[str, Any]] = {"tensor_compression": how, "kernel_fusion": {"level": "graph"}}
        names = ["tensor_compression", "flash_attention", "kernel_fusion"]
        manager = inference_pio.get_optimization_manager()
        manager.apply_optimizations(model, names, parameters=given)
        status = manager.get_optimization_status(model)
        seconds = {one["name"]: round(one["receipt"]["seconds"], 1) for one in status["applied_optimizations"]}
        room.notes += [*_said(model), f"seconds of apply {seconds}, weights of {status['weight_bytes'] / 1e9:.2f} GB"]
        return EngineDecoder(model, room)

    return make


def launched(
    *, dependent: bool = True, overlapping: bool = True, joined: bool = True
) -> Callable[[nn.Module, Room], Decoder]:
    """Level graph with other launches than it chooses; each is told at `FusedOperations`."""

    def make(model: nn.Module, room: Room) -> Decoder:
        from inference_pio.decoding.fused import FusedOperations

        fuse(model, "graph")
        engine = engine_of(model)
        if engine is None or not isinstance(engine.operations, FusedOperations):
            raise Unavailable("steps are not computed by our kernels here")
        engine.close()  # what was recorded until now is launched otherwise
        engine.operations = FusedOperations(dependent=dependent, overlapping=overlapping, joined=joined)
        return EngineDecoder(model, room)

    return make


def in_large_room(model: nn.Module, room: Room) -> Decoder:
    """Level graph behind a long call, whose room of 64K tokens stays for the short ones that follow."""
    fuse(model, "graph")
    tokens = room.prompt.repeat(1, -(-(300 if room.smoke else MORE_THAN_32K) // room.prompt.shape[1]))
    model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4)  # type: ignore[operator]
    return EngineDecoder(model, room)


class EngineDecoder(GenerateDecoder):
    """`generate` that must go through the engine: what it leaves to the library is a failure, with the reason."""

    def __init__(self, model: nn.Module, room: Room) -> None:
        super().__init__(model)
        self.room = room

    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        done = super().decode(prompt, new_tokens, forced=forced, logits=logits)
        engine = engine_of(self.model)
        if engine is None:
            return done
        if engine.counts.left:
            raise RuntimeError(f"the engine left calls to the library: {dict(engine.counts.left)}")
        if not self.room.smoke and not any("engine:" in note for note in self.room.notes):
            self.room.notes.append(f"engine: {engine.counts.to_json()}, room of {engine.nbytes / 1e9:.2f} GB")
            self.room.notes += getattr(getattr(engine.operations, "launches", None), "notes", [])
        return done


def hosted(resident_share: float = 0.0) -> Callable[[nn.Module, Room], Decoder]:
    """Keys and values on the host, those of a share of the layers on the device, beside exact attention; prompts stay
    whole."""

    def make(model: nn.Module, room: Room) -> Decoder:
        whole = dict.fromkeys(("prefill_chunk_size", "mlp_chunk_tokens", "logits_chunk_tokens"), 0)
        layers = model.config.get_text_config().num_hidden_layers
        stay = round(resident_share * layers)
        given = {"activation_offloading": whole | {"kv_placement": "host", "resident_layers": stay}}
        manager = inference_pio.get_optimization_manager()
        manager.apply_optimizations(model, ["flash_attention", "activation_offloading"], parameters=given)
        room.notes += [*_said(model), *manager.get_receipts(model)[-1].notes]
        decoder = HostedDecoder(model)
        decoder.stays = stay / layers
        return decoder

    return make


class HostedDecoder(GenerateDecoder):
    """`generate` whose caches must lie on the host: what is left to the library is a failure, with the reason."""

    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        done = super().decode(prompt, new_tokens, forced=forced, logits=logits)
        calls = hosted_calls(self.model)
        if calls is None or calls.left:
            raise RuntimeError(f"caches were left to the library: {calls and dict(calls.left)}")
        return done


def _said(model: nn.Module) -> list[str]:
    applied = inference_pio.get_optimization_manager().get_model_optimizations(model)
    return [f"applied: {', '.join(str(name) for name in applied)}"]


class SdpaDecoder(Decoder):
    """Another decoder, with torch's attention kernels restricted while it runs."""

    def __init__(self, inner: Decoder, backends: list[Any]) -> None:
        self.inner, self.backends = inner, backends

    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        from torch.nn.attention import sdpa_kernel

        with sdpa_kernel(self.backends):
            return self.inner.decode(prompt, new_tokens, forced=forced, logits=logits)


def with_sdpa(inner: Decoder, which: str) -> Decoder:
    return SdpaDecoder(inner, sdpa_backends(which))


def sdpa_backends(which: str) -> list[Any]:
    from torch.nn.attention import SDPBackend

    if which == "no-cudnn":
        return [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return [SDPBackend.FLASH_ATTENTION]
