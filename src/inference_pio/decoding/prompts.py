"""Prompts that recorded forwards read: recorded when the first of its length comes, then replayed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from inference_pio.anatomy.attention_function import tell_passed_over
from inference_pio.compat import after_forward
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.prompt import logits_of_prompt
from inference_pio.decoding.prompt_rules import PromptRules
from inference_pio.decoding.prompt_runners import SHORTEST, filled_up


def record_prompt(rules: PromptRules, bucket: Bucket, operations: Operations, tokens: int) -> int:
    """Record what reads prompts of so many tokens; how many recordings that took: none if it is there.

    The first of a model is made for the shortest prompts: where a layer asks the host for a number the driver ends it,
    and torch keeps what had been allocated by then.
    """
    length = filled_up(tokens)
    assert length is not None
    missing = [
        each
        for each in ([length] if rules.recordable else sorted({SHORTEST, length}))
        if not bucket.prompts.has(each, padded=bucket.padded)
    ]

    def forward(prompt: Tensor, last: Tensor) -> None:
        bucket.logits.copy_(logits_of_prompt(bucket.decoder, operations, bucket, prompt, last))

    for each in missing:
        bucket.prompts.record(bucket.batch, each, bucket.device, forward, padded=bucket.padded)
        rules.recordable = True
    return len(missing)


def read_prompt(
    rules: PromptRules, bucket: Bucket, model: Any, prompt: Tensor, given: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """Logits float32 [B, vocabulary] behind a prompt, by what was recorded for it, and what the library would hand to
    the step after it; its keys and values are in the bucket's cache."""
    tokens = prompt.shape[1]
    if bucket.starts is not None:
        bucket.slots.starts.copy_(bucket.starts)
    bucket.prompts.run(filled_up(tokens) or 0, prompt, padded=bucket.padded)
    bucket.cache.hold(tokens)
    for one in rules.patterned:
        tell_passed_over(one.module, one.why_dense, 1)
    outputs = CausalLMOutputWithPast(past_key_values=bucket.cache)
    return bucket.logits.to(copy=True, device=prompt.device), after_forward(model, outputs, given)
