"""The trained reference models as tests use them, with held-out text, needles and pictures in their own form."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripts.reference.architectures import NAMES
from scripts.reference.baselines import methods
from scripts.reference.captions import FRAMES, GRID, MERGE, PATCH, Album
from scripts.reference.corpus import documents, stream
from scripts.reference.evaluate import slices
from scripts.reference.pictures import draw as draw_picture
from scripts.reference.pictures import patches, scene
from scripts.reference.tokenizer import IMAGE, key_words, load_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

from inference_pio.measure import Reference
from inference_pio.measure.needles import NeedleFormat
from inference_pio.measure.questions import Question

__all__ = ["DRAWS", "FOLDER", "NAMES"]
FOLDER = Path(__file__).parents[1] / "models"
DRAWS = 4


def load(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A reference model in evaluation mode."""
    maker = AutoModelForImageTextToText if name == "qwen3_vl" else AutoModelForCausalLM
    return maker.from_pretrained(FOLDER / name, dtype=dtype).eval()


@functools.cache
def original(name: str) -> Any:
    """The one that tests share who only look at it."""
    return load(name)


@functools.cache
def recorded(name: str, number: int) -> Reference:
    """What it says of a draw, once for all that is judged by it; the file is gone with the process."""
    return Reference.record(original(name), draw(number))


def card(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name / "card.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The one that all of them share."""
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(FOLDER / "qwen3")
    return found


@functools.cache
def held_out_text() -> str:
    """Text of the running Python that none of them was trained on."""
    return "\n".join(text for _, text in documents(held_out=True))


def draw(number: int, windows: int = 6, length: int = 512) -> torch.Tensor:
    """Held-out tokens [windows, length]; another draw is another choice of windows."""
    return torch.from_numpy(slices(_held_out_tokens(), windows, length, seed=number))


@functools.cache
def needle_format() -> NeedleFormat:
    """Lines as they were trained on: two words are the key, one is the value, each of them one token."""
    words = key_words(_core())
    half = len(words) // 2
    keys = tuple(f"{one} {other}" for one, other in zip(words[:half], words[half:], strict=False))
    return NeedleFormat("\n@ {key} {value}\n", "\n@ {key}", " {value}", keys, tuple(words))


def by_baseline(model: Any, method: str, number: int = 0) -> Any:
    """A copy of a model, changed by one of the naive methods that its card records."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        methods(changed)[method](changed, torch.Generator().manual_seed(number))
    return changed


def pictures(count: int, seed: int = 2) -> list[Question]:
    """Pictures of qwen3_vl's kind, drawn by chance, and the captions they ask for."""
    rng, album = np.random.default_rng(seed), Album(_core())
    found = []
    for _ in range(count):
        what = scene(rng)
        head, caption = album.entry(what)
        ids = torch.tensor([head])
        pixels = torch.from_numpy(patches(draw_picture(what, rng)[None], PATCH, MERGE, FRAMES))
        inputs = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(torch.bfloat16),
            "image_grid_thw": torch.tensor([[1, GRID, GRID]]),
            "mm_token_type_ids": (ids == _core().token_to_id(IMAGE)).long(),
        }  # fmt: skip
        found.append(Question(inputs, tuple(caption)))
    return found


@functools.cache
def _core() -> Any:
    return load_tokenizer(FOLDER / "qwen3")


@functools.cache
def _held_out_tokens() -> np.ndarray:
    return stream([text for _, text in documents(held_out=True)], _core())


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    inner: Any = model.model  # type: ignore[assignment]
    layers: nn.ModuleList = getattr(inner, "language_model", inner).layers
    return layers
