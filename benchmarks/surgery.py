"""`python benchmarks/surgery.py`: what exact edits of `model_surgery` gain on this CPU, at the widths of real models.

Random weights; rounds in which the library's module and ours take turns, by the clock and, of one thread, by what the
processor gave, which other work on the machine does not spoil. `--smoke` is for small ones.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

ROUNDS = 15
PATCHES, CONTEXT = 256, 1024
LAYERS = 2
LATENT = {
    "hidden_size": 2048, "num_attention_heads": 20, "num_key_value_heads": 20, "q_lora_rank": 768, "kv_lora_rank": 512,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 192, "v_head_dim": 256,
}  # fmt: skip
"""GLM-4.7-Flash's attention, as the library's defaults have it."""
Run = Callable[[], Any]


def taken(plain: Run, ours: Run, rounds: int, clock: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Seconds of two calls that take turns, each called twice beforehand."""
    for _ in range(2):
        plain(), ours()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for found, call in zip(seconds, (plain, ours), strict=True):
            begun = clock()
            call()
            found.append(clock() - begun)
    return seconds


def operated(model: Any, edit: str) -> Any:
    """A copy of a model after one edit."""
    from inference_pio.manager import ModularOptimizationManager

    changed = copy.deepcopy(model)
    asked = {"model_surgery": {"edits": [edit]}}
    return ModularOptimizationManager().apply_optimizations(changed, ["model_surgery"], parameters=asked)


def patches(dtype: Any, smoke: bool) -> tuple[Run, Run]:
    """Qwen3-VL-2B's patch embedding (two frames of 16 x 16 pixels in colour to 1024), 256 patches at once."""
    import torch
    from torch import nn

    width = 16 if smoke else 1024
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, width, (2, 16, 16), stride=(2, 16, 16))).to(dtype).eval()
    given = torch.randn(PATCHES, 3, 2, 16, 16).to(dtype)
    other = operated(model, "patch_linear")
    return lambda: model(given), lambda: other(given)


def latent(dtype: Any, smoke: bool) -> tuple[Run, Run]:
    """One decode step of GLM-4.7-Flash's attention in two layers of dense MLPs, behind 1024 tokens."""
    import torch
    from transformers import AutoModelForCausalLM, Glm4MoeLiteConfig

    from benchmarks.arms.library import TINY_LATENT

    small = {"num_hidden_layers": LAYERS, "vocab_size": 128, "intermediate_size": 64, "first_k_dense_replace": LAYERS}
    config = Glm4MoeLiteConfig(**(LATENT | (TINY_LATENT if smoke else {}) | small), pad_token_id=0, eos_token_id=None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return _step(model), _step(operated(model, "latent_decode"))


def _step(model: Any) -> Run:
    import torch

    cache = model(input_ids=torch.randint(1, 120, (1, CONTEXT)), use_cache=True).past_key_values
    token = torch.tensor([[5]])

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def _told(word: str, plain: float, ours: float) -> str:
    return f"{word} {1e3 * plain:.2f} ms -> {1e3 * ours:.2f} ms, {plain / ours:.1f}x"


def main(words: list[str] | None = None) -> int:
    import torch

    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--smoke", action="store_true")
    asked = reader.parse_args(words)
    torch.set_grad_enabled(False)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads")
    for name, make in (("patch_linear", patches), ("latent_decode", latent)):
        for dtype in (torch.float32, torch.bfloat16):
            arms, rounds = make(dtype, asked.smoke), 3 if asked.smoke else ROUNDS
            wall = taken(*arms, rounds, time.perf_counter)
            torch.set_num_threads(1)
            alone = taken(*arms, rounds, time.process_time)
            torch.set_num_threads(threads)
            shown = (("median", statistics.median, wall), ("fastest", min, wall), ("one thread", min, alone))
            told = [_told(word, *map(of, seconds)) for word, of, seconds in shown]
            print(f"{name}, {str(dtype).removeprefix('torch.')}: {'; '.join(told)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
