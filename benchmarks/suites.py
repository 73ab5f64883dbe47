"""What is measured: the model, the work, the systems in their order, and the seconds each was predicted to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["decode", "prefill", "kernels", "load", "score"]
TOKENS_FIRST = "tokens before heads"
"""As models hand queries, keys and values to attention: views of projections, which rotary embedding keeps."""


@dataclass(frozen=True)
class Suite:
    """`arms` maps a system to the seconds predicted for it, in one slice; `optional` ones run when named.

    `gigabytes` is what one system takes on the device; so many run in turn as fit. `baseline` is the system that ratios
    are told against, `ceiling` the limit that shares are of. `family` is the module of `benchmarks.arms` that has the
    kernels of a suite. `one_by_one`: a set-up takes times itself, and needs the device to itself. `layout` tells how a
    prompt's tensors lie, where results of another layout must not be mixed in. `moves`: what a step brings over the
    ceiling's path, where that is not all that it reads.
    """

    name: str
    kind: Kind
    title: str
    arms: Mapping[str, float]
    optional: Mapping[str, float] = field(default_factory=dict)
    baseline: str = "plain"
    model: str = ""
    family: str = ""
    gigabytes: float = 1.0
    prompt_tokens: int = 512
    new_tokens: int = 256
    rows: int = 1
    check_tokens: int = 32
    lengths: tuple[int, ...] = ()
    smoke_lengths: tuple[int, ...] = (32, 64)
    rounds: int = 5
    heads: tuple[int, int, int] = (32, 8, 128)
    ceiling: str = "memory copy"
    cpu: bool = False
    one_by_one: bool = False
    threads: int | None = None
    layout: str = ""
    moves: Literal["", "cache", "disk"] = ""

    def smoked(self) -> Suite:
        """The same walk in seconds on a CPU."""
        lengths = self.smoke_lengths[: len(self.lengths)]
        return replace(
            self,
            prompt_tokens=24,
            new_tokens=6,
            check_tokens=min(self.check_tokens, 4),
            lengths=lengths,
            rounds=2,
            heads=(4, 2, 64),
        )

    def settings(self) -> dict[str, Any]:
        """What must be equal for two runs to be one."""
        names = [
            "kind",
            "model",
            "family",
            "prompt_tokens",
            "new_tokens",
            "check_tokens",
            "lengths",
            "heads",
            "threads",
        ]
        names += ["rows"] * (self.rows > 1) + ["layout"] * bool(self.layout) + ["moves"] * bool(self.moves)
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "tune-flash", "kernels", "Launches of the own prefill kernel, 16K tokens, 32 query and 8 key heads of 128",
            arms={"described": 35, "pointers": 18, "padded": 15, "listed": 15},
            baseline="described", family="tuning", gigabytes=6, lengths=(16384,), smoke_lengths=(200,),
            rounds=3, layout=TOKENS_FIRST,
        ),
        Suite(
            "tune-decode", "kernels", "Launches of the own decode kernel, 32K tokens, 32 query heads of 128",
            arms={"4:1": 35, "8:1": 35},
            baseline="4:1", family="tuning", gigabytes=6, lengths=(32768,), rounds=3,
        ),
        Suite(
            "attention", "kernels", "Causal attention, 32 query and 8 key heads of 128, bfloat16",
            arms={"cudnn": 20, "flash": 20, "flex": 60, "pio": 20, "triton": 15, "triton-best": 15},
            optional={"efficient": 25, "math": 25},
            baseline="cudnn", family="attention", gigabytes=10,
            lengths=(1024, 4096, 8192, 16384, 32768, 65536, 131072), layout=TOKENS_FIRST,
        ),
        Suite(
            "gemv", "kernels", "Products of a few rows with large matrices, bfloat16, many weights in turn in a graph",
            arms={"cublas": 25, "pio-rule": 47, "pio-tuned": 110, "pio-dependent": 110},
            baseline="cublas", family="gemv", gigabytes=4, rounds=3, one_by_one=True,
        ),
        Suite(
            "step-kernels", "kernels", "The other kernels of a decode step, bfloat16, over caches and experts in turn",
            arms={"torch": 40, "pio-kernels": 45},
            baseline="torch", family="step_kernels", gigabytes=8, rounds=3, lengths=(512, 4096, 32768),
        ),
        Suite(
            "attention-decode", "kernels", "Attention of one new token, 32 query heads of 128, bfloat16",
            arms={"default": 20, "flash": 20, "cudnn": 20, "pio": 20, "triton": 20, "triton-best": 20},
            optional={"efficient": 25},
            baseline="default", family="decode_attention", gigabytes=12, rounds=3,
            lengths=(1024, 4096, 16384, 32768, 65536, 131072),
        ),
        Suite(
            "attention-hard", "kernels", "Where the library's default attention is bad, bfloat16",
            arms={"default": 30, "pio": 25},
            baseline="default", family="hard_attention", gigabytes=20,
        ),
        Suite(
            "attention-latent", "kernels", "Attention of one decode step of GLM-4.7-Flash, bfloat16",
            arms={"library": 20, "pio": 20},
            baseline="library", family="latent_attention", gigabytes=12, lengths=(4096, 32768),
        ),
        Suite(
            "attention-sparse", "kernels", "Causal attention that leaves keys out: dense work over the time taken",
            arms={
                "cudnn": 20, "flash": 20, "triton": 20, "pio-built": 20, "pio-window": 20, "pio-selected": 20,
                "pio-selected-mean": 20, "pio-selection": 15,
            },
            baseline="cudnn", family="sparse_attention", gigabytes=10, lengths=(4096, 32768, 131072),
            smoke_lengths=(200, 384), rounds=3, layout=TOKENS_FIRST,
        ),
        Suite(
            "attention-sparse-decode", "kernels",
            "Attention of one new token over chosen pages, 32 query and 8 key heads of 128: bytes of the whole cache",
            arms={"default": 12, "triton": 12, "pio-budget": 20, "pio-budget-x4": 20, "pio-pages": 15},
            baseline="default", family="sparse_decode", gigabytes=9, rounds=3, lengths=(32768, 131072),
            smoke_lengths=(320, 520),
        ),
        Suite(
            "decode-qwen3-4b", "decode", "Qwen3-4B, decode at batch 1 behind 512 tokens",
            arms={
                "plain": 55, "graph-eager": 32, "graph-inductor": 62, "static-compile": 75, "pio-lossless": 60,
                "pio-graph": 45, "pio-graph-waiting": 45, "pio-graph-two": 45, "pio-graph-exact": 50,
                "pio-balanced": 75, "pio-int8": 75, "pio-int4": 75, "pio-fp8": 75, "torchao-int8": 100,
                "torchao-int4": 80, "torchao-fp8": 80, "liger": 60,
            },
            optional={
                "graph-inductor-tuned": 110, "plain-flash-only": 65, "plain-no-cudnn": 55, "torchao-int8-tuned": 245,
                "pio-performance": 90, "pio-merged": 60, "pio-gemv": 65, "pio-graph-large-room": 80,
                "pio-decomposed": 220, "pio-decomposed-pivoted": 240, "pio-pruned": 55, "pio-exponent12": 90,
                "pio-int8-head": 75, "pio-fp8-head": 75, "pio-int4-head": 75,
                "pio-decomposed-mlp": 200,
            },
            model="qwen3-4b", gigabytes=13,
        ),
        Suite(
            "decode-qwen3-4b-x8", "decode", "Qwen3-4B, decode of 8 rows behind 512 tokens each",
            arms={"plain": 60, "pio-graph": 80}, optional={"static-compile": 85, "pio-graph-waiting": 70},
            model="qwen3-4b", gigabytes=17, new_tokens=128, rows=8,
        ),
        Suite(
            "decode-qwen3-4b-x16", "decode", "Qwen3-4B, decode of 16 rows behind 512 tokens each",
            arms={"plain": 65, "pio-graph": 60}, optional={"static-compile": 85},
            model="qwen3-4b", gigabytes=21, new_tokens=128, rows=16,
        ),
        Suite(
            "decode-qwen3-4b-32k", "decode", "Qwen3-4B, decode at batch 1 behind 32K tokens",
            arms={"plain": 75, "pio-graph": 90, "pio-kv-int8": 90},
            optional={"graph-eager": 60, "graph-inductor": 95},
            model="qwen3-4b", gigabytes=34, prompt_tokens=32768, new_tokens=64, check_tokens=16, rounds=3,
        ),
        Suite(
            "decode-qwen3-4b-32k-budget", "decode", "Qwen3-4B, decode behind 32K tokens, 4,096 of which are read",
            arms={"pio-graph": 90, "pio-graph-budget": 110},
            optional={"pio-performance": 110, "pio-int4-budget": 110, "plain": 90},
            baseline="pio-graph", model="qwen3-4b", gigabytes=34, prompt_tokens=32768, new_tokens=256,
            check_tokens=9, rounds=3,
        ),
        Suite(
            "decode-qwen3-30b-a3b", "decode", "Qwen3-30B-A3B, decode at batch 1 behind 512 tokens",
            arms={"plain": 55, "graph-inductor": 115, "pio-graph": 85, "pio-lossless": 60, "pio-balanced": 110},
            optional={
                "pio-graph-exact": 70, "pio-graph-waiting": 85,
                "plain-batched-mm": 65, "plain-eager-experts": 95, "graph-inductor-batched-mm": 115,
                "static-compile": 140,
                "torchao-int8": 150, "pio-int4": 200,
            },
            model="qwen3-30b-a3b", gigabytes=68, new_tokens=64,
        ),
        Suite(
            "decode-qwen3-vl-2b", "decode", "Qwen3-VL-2B, text decode at batch 1 behind 512 tokens",
            arms={
                "plain": 40, "static-compile": 60, "graph-inductor": 50, "pio-graph": 60, "pio-lossless": 40,
                "pio-balanced": 50,
            },
            optional={"pio-graph-exact": 45, "pio-graph-waiting": 60},
            model="qwen3-vl-2b", gigabytes=9, new_tokens=128,
        ),
        Suite(
            "decode-glm-4.7-flash", "decode", "GLM-4.7-Flash, decode at batch 1 behind 512 tokens",
            arms={"plain": 55, "graph-inductor": 115, "pio-graph": 85, "pio-lossless": 60, "pio-balanced": 110},
            optional={"pio-graph-exact": 70, "pio-graph-waiting": 85, "pio-graph-products": 85, "static-compile": 140},
            model="glm-4.7-flash", gigabytes=68, new_tokens=64,
        ),
        Suite(
            "decode-glm-4.7-flash-32k", "decode", "GLM-4.7-Flash, decode at batch 1 behind 32K tokens",
            arms={"plain": 85, "pio-graph": 100},
            model="glm-4.7-flash", gigabytes=76, prompt_tokens=32768, new_tokens=32, check_tokens=8, rounds=3,
        ),
        Suite(
            "decode-glm-4.7-layers", "decode", "GLM-4.7, a stack of 4 of its 92 layers, decode at batch 1",
            arms={"plain": 25, "graph-inductor": 50, "pio-graph": 45, "pio-lossless": 30, "pio-balanced": 45},
            optional={"pio-graph-exact": 35, "pio-graph-waiting": 45},
            model="glm-4.7-layers", gigabytes=34, new_tokens=64,
        ),
        Suite(
            "prefill-qwen3-4b", "prefill", "Qwen3-4B, forward of a prompt",
            arms={"plain": 25, "flash-only": 28, "pio-lossless": 28, "pio-balanced": 35, "compile": 90},
            optional={
                "pio-elementwise": 28, "pio-merged": 28, "pio-int4": 80, "pio-int8-activations": 60,
                "pio-fp8-activations": 60, "pio-pruned": 30,
            },
            model="qwen3-4b", gigabytes=26, lengths=(8192, 32768),
        ),
        Suite(
            "prefill-qwen3-4b-short", "prefill", "Qwen3-4B, forward of a short prompt",
            arms={"plain": 25, "pio-flash": 28, "pio-lossless": 28}, model="qwen3-4b", gigabytes=26,
            lengths=(512, 1024, 2048, 4096), rounds=61,
        ),
        Suite(
            "prompts-qwen3-4b", "prefill",
            "Qwen3-4B, the first token of `generate`: tokens of the prompt over the time that it takes",
            arms={
                "generate": 35, "pio-generate-lossless": 75, "pio-generate-balanced": 110,
                "pio-generate-performance": 120,
            },
            optional={"pio-generate-unrecorded": 45, "compile": 90}, baseline="generate",
            model="qwen3-4b", gigabytes=26, lengths=(32, 128, 512, 1024, 2048), check_tokens=1, rounds=31,
        ),
        Suite(
            "prefill-qwen3-4b-128k", "prefill", "Qwen3-4B, forward of a prompt of 128K tokens",
            arms={"plain": 95, "pio-sparse": 65, "pio-adaptive": 100}, optional={"pio-elementwise": 95},
            model="qwen3-4b", gigabytes=46, lengths=(131072,), smoke_lengths=(640,), check_tokens=1, rounds=3,
        ),
        Suite(
            "offload-qwen3-4b", "decode", "Qwen3-4B with its weights off the device, decode at batch 1",
            arms={"cpu-offload": 75, "disk-offload": 115, "pio-disk-offloading": 15}, optional={"pio-quarter": 30},
            baseline="cpu-offload", model="qwen3-4b", gigabytes=13, prompt_tokens=64, new_tokens=6, check_tokens=3,
            rounds=3,
            ceiling="host to device, pinned",
        ),
        Suite(
            "disk-qwen3-4b", "decode", "Qwen3-4B, its layers from a cold disk, decode at batch 1",
            arms={"disk-offload-cold": 100, "pio-disk-cold": 85, "pio-disk-cold-exponent12": 80},
            optional={"pio-disk-cold-8": 85},
            baseline="disk-offload-cold", model="qwen3-4b", gigabytes=13, prompt_tokens=64, new_tokens=3,
            check_tokens=2, rounds=2, one_by_one=True, ceiling="disk read, direct", moves="disk",
        ),
        Suite(
            "score-qwen3-4b", "score", "Qwen3-4B, losses of 32 batches of 512 tokens, its layers from a cold disk",
            arms={"disk-offload-cold": 60, "pio-layer-major": 60},
            baseline="disk-offload-cold", model="qwen3-4b", gigabytes=16, prompt_tokens=512, rows=32, rounds=2,
            one_by_one=True, ceiling="disk read, direct",
        ),
        Suite(
            "offload-qwen3-30b-a3b", "decode", "Qwen3-30B-A3B with weights on the host, decode at batch 1",
            arms={"cpu-offload": 230, "pio-16gb": 110, "pio-memory-efficient-12gb": 150},
            baseline="cpu-offload", model="qwen3-30b-a3b", gigabytes=68, prompt_tokens=64, new_tokens=4,
            check_tokens=2, rounds=3, ceiling="host to device, pinned",
        ),
        Suite(
            "load-qwen3-4b", "load", "Qwen3-4B, its checkpoint brought into memory from a cold disk",
            arms={"from-pretrained": 60, "pio-load": 50, "pio-load-int8": 60, "pio-load-budget": 60},
            baseline="from-pretrained", model="qwen3-4b", gigabytes=18, prompt_tokens=64, rounds=3, one_by_one=True,
            ceiling="disk read",
        ),
        Suite(
            "kv-offload-qwen3-4b-32k", "decode", "Qwen3-4B, its keys and values on the host, decode behind 32K tokens",
            arms={"plain": 75, "library-kv-offload": 130, "pio-kv-host": 110, "pio-kv-host-third": 100},
            baseline="library-kv-offload", model="qwen3-4b", gigabytes=34, prompt_tokens=32768, new_tokens=32,
            check_tokens=8, rounds=3, ceiling="host to device, pinned", moves="cache",
        ),
        Suite(
            "prefill-qwen3-4b-pieces", "prefill", "Qwen3-4B, forward of a prompt of 32K tokens in pieces",
            arms={"plain": 30, "pio-flash": 30, "pio-pieces": 35, "pio-pieces-4096": 35},
            model="qwen3-4b", gigabytes=26, lengths=(32768,),
        ),
        Suite(
            "cpu-demo", "decode", "SmolLM2-135M-Instruct on 2 CPU cores",
            arms={
                "plain": 30, "plain-float32": 40, "pio-lossless": 30, "pio-balanced": 30, "pio-performance": 35,
                "pio-memory-efficient": 40,
            },
            model="demo", prompt_tokens=128, new_tokens=48, check_tokens=32, cpu=True, threads=2,
        ),
    )
}  # fmt: skip
