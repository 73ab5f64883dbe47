"""A tiny model on disk as a user's folder holds one: configuration, weights, and a real byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inference_pio.measure import ProbeSettings
from inference_pio.measure.text import evaluation_text
from tests import tiny

QUICK = ProbeSettings(
    quality_tokens=256, window=64, prefill_tokens=48, decode_prompt_tokens=8, new_tokens=6, repeats=2, greedy_tokens=4
)
CHAT = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<assistant>"


def write_model_folder(
    folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, *, tokenizer: bool = True
) -> Path:
    """Write a tiny model to `folder`, which is made, and return it."""
    tiny.build(name, dtype=dtype).save_pretrained(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """120 tokens, which every tiny model knows."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [evaluation_text()[:20_000]],
        trainers.BpeTrainer(vocab_size=120, show_progress=False, special_tokens=["<|end|>"]),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", chat_template=CHAT)
