"""kernel_fusion on trained models: steps composed of few kernels choose as the library chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.choice import choose_operations
from inference_pio.decoding.step import logits_of_step
from tests.quality import reference_models
from tests.sweep import rotating, turn_of_this_commit

PROMPT, STEPS = 64, 256


@torch.no_grad()
def agreement(name: str, device: str, *, exact: bool) -> float:
    """The share of steps behind held-out text at which the engine's best token is the library's."""
    model: Any = reference_models.load(name).to(device)
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    operations = choose_operations(torch.device(device), torch.bfloat16, exact=exact)
    tokens = reference_models.draw(1, windows=1, length=PROMPT + STEPS).to(device)
    bucket = Bucket(model, decoder, 1, PROMPT + STEPS, ahead=1)
    bucket.clear(None)
    given = {"attention_mask": torch.ones_like(tokens[:, :PROMPT]), "use_cache": True}
    theirs = model(tokens[:, :PROMPT], **given).past_key_values
    model(tokens[:, :PROMPT], past_key_values=bucket.cache, **given)
    agreed = 0
    for place in range(PROMPT, PROMPT + STEPS):
        token, position = tokens[:, place], torch.tensor([place], device=device)
        bucket.slots.begin(token, position, length=place, made=1)
        ours = logits_of_step(decoder, operations, bucket)
        step = model(token[:, None], position_ids=position[None], past_key_values=theirs, use_cache=True)
        agreed += int(ours.argmax() == step.logits[0, -1].argmax())
    return agreed / STEPS


@pytest.mark.parametrize("name", rotating(reference_models.NAMES, turn_of_this_commit()))
def test_steps_choose_as_the_library_does(name: str) -> None:
    assert agreement(name, "cpu", exact=False) == 1.0


@pytest.mark.gpu
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", reference_models.NAMES)
def test_steps_on_a_gpu_choose_as_the_library_does(name: str, exact: bool) -> None:
    assert agreement(name, "cuda", exact=exact) >= 0.995
