"""A trained model as the folder that users load: bf16 weights, configurations, tokenizer."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from .architectures import CONTEXT
from .tokenizer import END, SPECIAL

WEIGHTS = "model.safetensors"


def export(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder; files of an earlier export are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.token_to_id(END)
    model.eval().save_pretrained(folder)
    (folder / WEIGHTS).chmod(0o644)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[token for token in SPECIAL if token != END],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    if hasattr(model.config, "vision_config"):
        shutil.copyfile(Path(__file__).parent / "preprocessor_config.json", folder / "preprocessor_config.json")


def load(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Any:
    """The exported model as a user would load it."""
    maker = AutoModelForImageTextToText if (folder / "preprocessor_config.json").exists() else AutoModelForCausalLM
    return maker.from_pretrained(folder, dtype=dtype).to(device).eval()


def sha256(path: Path) -> str:
    """The hash that freezes a model."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
