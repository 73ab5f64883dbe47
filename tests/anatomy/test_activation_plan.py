from __future__ import annotations

from dataclasses import replace

import pytest

from inference_pio.anatomy.activation_plan import USUAL, USUAL_LOGITS, plan_activations
from inference_pio.anatomy.activation_shapes import ActivationShapes
from inference_pio.errors import PlanError

SHAPES = ActivationShapes(
    state=5120, attention=30720, mlp=58368, logits=303872, loss=1823232, mask=3, expanded=0, longest=262144
)
"""Qwen3-4B's, in bfloat16."""


def test_without_a_budget_the_usual_sizes_are_taken() -> None:
    plan = plan_activations(SHAPES)
    assert (plan.prompt_tokens, plan.mlp_tokens, plan.logits_tokens) == (USUAL, USUAL, USUAL_LOGITS)
    assert plan.layer_bytes == 4096 * (3 * 5120 + 58368) + 3 * 4096 * 262144
    assert plan.whole_bytes == 262144 * (3 * 5120 + 58368)
    assert (plan.loss_bytes, plan.whole_loss_bytes) == (512 * 1823232, 262144 * 1823232)


@pytest.mark.parametrize("budget", [2 * 10**6, 3 * 10**6, 10**7, 10**8, 10**9, 10**11])
@pytest.mark.parametrize("text", [256, 32768])
def test_a_budget_is_kept_and_used(budget: int, text: int) -> None:
    if text == 32768 and budget < 3 * 10**6:
        return
    plan = plan_activations(SHAPES, budget, text=text)
    assert plan.layer_bytes <= budget
    assert plan.prompt_tokens == 8192 or over(budget, text=text, prompt=2 * plan.prompt_tokens, mlp=16)
    assert plan.mlp_tokens == plan.prompt_tokens or over(
        budget, text=text, prompt=plan.prompt_tokens, mlp=2 * plan.mlp_tokens
    )
    assert plan.loss_bytes <= budget


def over(budget: int, **sizes: int) -> bool:
    return plan_activations(SHAPES, **sizes).layer_bytes > budget


def test_an_mlp_is_cut_further_before_a_prompt_is() -> None:
    """What a piece's attention and its mask need bounds the piece; rows of its MLP are cut once more."""
    plan = plan_activations(SHAPES, 300_000_000, text=32768)
    assert (plan.prompt_tokens, plan.mlp_tokens) == (2048, 1024)


def test_what_each_piece_makes_of_the_whole_cache_is_counted() -> None:
    plan = plan_activations(replace(SHAPES, expanded=1000), text=5000, prompt=100)
    assert plan.layer_bytes == 100 * SHAPES.layer_peak(1, 1) + 3 * 100 * 5000 + 1000 * 5000


def test_a_cache_that_a_kernel_packs_is_counted_from_64_tokens() -> None:
    packing = replace(SHAPES, packed=4096)
    few, many = (plan_activations(packing, text=32768, prompt=tokens).layer_bytes for tokens in (63, 64))
    assert few == plan_activations(SHAPES, text=32768, prompt=63).layer_bytes
    assert many == 64 * SHAPES.attention_peak + 4096 * 32768 + 3 * 64 * 32768
    assert plan_activations(packing, 10**8, text=32768).prompt_tokens == 32  # all that is packed is over the budget
    assert plan_activations(packing, 10**9, text=32768).prompt_tokens == 4096
    assert plan_activations(replace(SHAPES, packed=40000), text=1000).whole_bytes == 1000 * (46080 + 40000)


def test_sizes_that_are_given_stay() -> None:
    plan = plan_activations(SHAPES, 10**9, prompt=1000, mlp=100, logits=7)
    assert (plan.prompt_tokens, plan.mlp_tokens, plan.logits_tokens) == (1000, 100, 7)
    whole = plan_activations(SHAPES, text=1000, prompt=0, mlp=64)
    assert (whole.prompt_tokens, whole.mlp_tokens) == (0, 64)
    assert whole.layer_bytes == 1000 * SHAPES.attention_peak


def test_a_budget_that_is_too_small_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlanError, match=r"is 500.0 kB, and a layer .* needs 1.2 MB for 16 tokens of a text of 1000 "):
        plan_activations(SHAPES, 500_000, text=1000)
    with pytest.raises(PlanError, match=r"is 1.5 MB, and the loss of 1 tokens takes 1.8 MB"):
        plan_activations(SHAPES, 1_500_000, text=1000)
    with pytest.raises(PlanError, match=r"needs 157.1 MB for 2048 tokens"):
        plan_activations(SHAPES, 10**8, text=1000, prompt=2048, mlp=2048)


def test_the_plan_is_plain_data() -> None:
    told = plan_activations(SHAPES, 10**9).to_json()
    assert (told["budget_bytes"], told["text_tokens"]) == (10**9, 262144)
    assert told["bytes_a_token"]["attention"] == 46080
    assert plan_activations(replace(SHAPES, longest=None)).text == 32768
