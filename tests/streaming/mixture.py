"""A tiny mixture of experts deep enough that keeping a few of them in each layer saves memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests import tiny


def mixture(layers: int = 6, experts: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    config = Qwen3MoeConfig(
        vocab_size=128, intermediate_size=96, head_dim=16, num_experts=experts, num_experts_per_tok=2,
        moe_intermediate_size=48, norm_topk_prob=True, **(tiny.DECODER | {"num_hidden_layers": layers}), **tiny.SPECIAL,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()
