"""One budget turned into the sizes of pieces: a pure function of a decoder's shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference_pio.anatomy.activation_shapes import PACKED_FROM, ActivationShapes
from inference_pio.contract.byte_size import in_words
from inference_pio.errors import PlanError

LARGEST, SMALLEST = 8192, 16
"""Tokens of a piece that a plan chooses from, in powers of two: larger gain no time, smaller cost too much."""
USUAL, USUAL_LOGITS, USUAL_TEXT = 4096, 512, 32768
"""Tokens of a piece where neither a budget nor a size is given, and of a text where the model names no limit. On an
H100 a prompt of 32K of Qwen3-4B takes 1.05 times the time whole in pieces of 4096; of 2048 more."""


@dataclass(frozen=True)
class ActivationPlan:
    """Tokens of a piece, 0 for none, for a text of so many; the bytes that a layer then needs at once, and without.

    `loss_bytes` is the same of a loss. All of it lies beside the weights, the cache and what a forward gives back.
    """

    text: int
    prompt_tokens: int
    mlp_tokens: int
    logits_tokens: int
    layer_bytes: int
    whole_bytes: int
    loss_bytes: int
    whole_loss_bytes: int
    budget: int | None
    shapes: ActivationShapes

    def to_json(self) -> dict[str, Any]:
        shapes = self.shapes
        return {
            "prefill_chunk_size": self.prompt_tokens, "mlp_chunk_tokens": self.mlp_tokens,
            "logits_chunk_tokens": self.logits_tokens, "text_tokens": self.text, "budget_bytes": self.budget,
            "layer_bytes": self.layer_bytes, "whole_bytes": self.whole_bytes, "loss_bytes": self.loss_bytes,
            "whole_loss_bytes": self.whole_loss_bytes,
            "bytes_a_token": {
                "attention": shapes.attention_peak, "mlp": shapes.layer_peak(1, 1), "loss": shapes.loss,
                "mask, for each token of a piece": shapes.mask, "expanded of the cache": shapes.expanded,
                f"packed of the cache, from {PACKED_FROM} tokens": shapes.packed,
            },
        }  # fmt: skip


def plan_activations(
    shapes: ActivationShapes, budget: int | None = None, *, text: int | None = None, prompt: int | None = None,
    mlp: int | None = None, logits: int | None = None,
) -> ActivationPlan:  # fmt: skip
    """Sizes that are given stay; the others are the largest that keep to the budget, or the usual ones without it.

    Raises PlanError, with the numbers, where none keep to it.
    """
    text = text or shapes.longest or USUAL_TEXT
    found_prompt, found_mlp = _layer_pieces(shapes, budget, text, prompt, mlp)
    found_logits = logits if logits is not None else _logits_piece(shapes, budget)
    plan = ActivationPlan(
        text, found_prompt, found_mlp, found_logits, layer_bytes=_layer_bytes(shapes, text, found_prompt, found_mlp),
        whole_bytes=shapes.layer_peak(text, text, text), loss_bytes=shapes.loss * (found_logits or text),
        whole_loss_bytes=shapes.loss * text, budget=budget, shapes=shapes,
    )  # fmt: skip
    _hold(plan)
    return plan


def _hold(plan: ActivationPlan) -> None:
    """Raise PlanError where a plan is over its budget."""
    shapes, budget = plan.shapes, plan.budget
    if budget is not None and plan.layer_bytes > budget:
        raise PlanError(
            f"the budget for activations is {in_words(budget)}, and a layer of this model needs "
            f"{in_words(plan.layer_bytes)} for {plan.prompt_tokens or 'all'} tokens of a text of {plan.text} "
            f"({in_words(shapes.attention_peak)} a token in its attention, {in_words(shapes.layer_peak(1, 1))} in its "
            f"MLP, {in_words(shapes.mask)} of a mask for each, {in_words(shapes.expanded)} of the cache for each of "
            f"the text, {in_words(shapes.packed)} more in pieces of {PACKED_FROM} and more): give at least that, "
            "or shorter texts (text_tokens) or smaller pieces (prefill_chunk_size, mlp_chunk_tokens). Nothing was "
            "touched."
        )
    if budget is not None and plan.logits_tokens and plan.loss_bytes > budget:
        raise PlanError(
            f"the budget for activations is {in_words(budget)}, and the loss of {plan.logits_tokens} tokens takes "
            f"{in_words(plan.loss_bytes)}: give at least that, or a smaller logits_chunk_tokens (0 leaves losses to "
            "the library). Nothing was touched."
        )


def _layer_pieces(
    shapes: ActivationShapes, budget: int | None, text: int, prompt: int | None, mlp: int | None
) -> tuple[int, int]:
    if budget is None:
        found = USUAL if prompt is None else prompt
        return found, (found or USUAL) if mlp is None else mlp
    prompts = _sizes() if prompt is None else [prompt]
    mlps = _sizes() if mlp is None else [mlp]
    for one in prompts:
        for other in mlps:
            if _layer_bytes(shapes, text, one, other) <= budget:
                return one, min(one, other) if one and mlp is None else other
    return prompts[-1], mlps[-1]


def _logits_piece(shapes: ActivationShapes, budget: int | None) -> int:
    if budget is None or not shapes.loss:
        return USUAL_LOGITS
    sizes = [*_sizes(), *(2**power for power in range(SMALLEST.bit_length() - 2, -1, -1))]
    return next((size for size in sizes if shapes.loss * size <= budget), 1)


def _layer_bytes(shapes: ActivationShapes, text: int, prompt: int, mlp: int) -> int:
    """Of a piece, its mask over the whole text and what it makes of a cache of latents; whole texts need neither."""
    tokens = prompt or text
    return (
        shapes.layer_peak(tokens, mlp or tokens, text) + (shapes.mask * prompt + shapes.expanded * bool(prompt)) * text
    )


def _sizes() -> list[int]:
    return [2**power for power in range(LARGEST.bit_length() - 1, SMALLEST.bit_length() - 2, -1)]
