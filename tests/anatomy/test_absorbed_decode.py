"""Decoding over a latent cache as it is gives what the library gives, on a trained model, step by step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from inference_pio.anatomy import absorbed_decode
from inference_pio.anatomy.absorbed_decode import absorb, attend_absorbed, check_absorbed, expanded, is_unexpanded
from inference_pio.anatomy.latent_attention import latent_sites
from inference_pio.compat import add_attention_function
from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.formats.int8 import Int8Linear
from inference_pio.kernels.attention import fused_attention
from inference_pio.undo.journal import Journal, unwind
from tests import tiny
from tests.quality import reference_models

NAME = "inference_pio_test_latent"
served: list[int] = []
"""Queries of each call that was attended absorbed."""


def attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None, **rest: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    if is_unexpanded(query, key):
        out = attend_absorbed(module, query, key, value, attention_mask, scale=scaling, dropout=dropout)
        if out is not None:
            served.append(query.shape[2])
            return out, None
        key, value = expanded(module, key, value)
    causal = attention_mask is None and query.shape[2] > 1
    out = fused_attention(query, key, value, attention_mask, causal=causal, scale=scaling, dropout=dropout)
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    add_attention_function(NAME, attention)
    served.clear()
    yield
    for table in (AttentionInterface, AttentionMaskInterface):
        table._global_mapping.pop(NAME)


def absorbing(model: Any) -> Journal:
    journal = Journal(model)
    with journal.step("absorb"):
        journal.set(model.config, "_attn_implementation_internal", NAME)
        for _, module, reason in latent_sites(model):
            assert reason is None
            absorb(journal, module, NAME)
    return journal


@pytest.fixture(scope="module")
def trained() -> Any:
    return reference_models.load("glm4_moe_lite", torch.float32)


@torch.no_grad()
def generate(model: Any, count: int, rows: int = 1, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens and the logits of every step; rows after the first are padded on the left."""
    ids = reference_models.draw(3, rows, 48)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        ids[row, : 11 * row], mask[row, : 11 * row] = 0, 0
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=count, do_sample=False, output_logits=True,
        return_dict_in_generate=True, eos_token_id=None, pad_token_id=0, **how,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


HOW = {
    "128 tokens": {"count": 128},
    "three rows, two of them padded": {"count": 24, "rows": 3},
    "a static cache": {"count": 24, "rows": 2, "cache_implementation": "static"},
    "beams": {"count": 16, "num_beams": 3},
}


@pytest.mark.parametrize("how", HOW)
def test_generated_tokens_and_their_logits_are_the_librarys(how: str, trained: Any) -> None:
    tokens, logits = generate(trained, **HOW[how])
    journal = absorbing(trained)
    try:
        got_tokens, got_logits = generate(trained, **HOW[how])
    finally:
        unwind(journal.frames[0])
    assert torch.equal(got_tokens, tokens)
    assert (got_logits - logits).abs().max() <= 1e-4
    layers = trained.config.num_hidden_layers
    assert served == [1] * layers * (logits.shape[0] - 1)  # every step but the first, which reads the prompt
    assert not any("expand_kv" in vars(module) for _, module, _ in latent_sites(trained))


@pytest.mark.parametrize(("count", "absorbs"), [(1, True), (3, True), (8, True), (9, False), (40, False)])
@torch.no_grad()
def test_a_few_new_tokens_are_absorbed_and_more_are_expanded(count: int, absorbs: bool, trained: Any) -> None:
    ids = reference_models.draw(4, 2, 100)
    wanted = trained(ids, use_cache=False).logits[:, -count:]
    journal = absorbing(trained)
    try:
        cache = trained(ids[:, :-count]).past_key_values
        trained(ids[:, :1])
        assert served == []  # a prompt is not, nor is one of a single token: its cache is no longer than itself
        got = trained(ids[:, -count:], past_key_values=cache).logits
    finally:
        unwind(journal.frames[0])
    assert (got - wanted).abs().max() <= 1e-4
    assert served == [count] * trained.config.num_hidden_layers * absorbs


def decode_step(model: Any, **how: Any) -> torch.Tensor:
    ids = tiny.inputs("glm4_moe_lite", model)["input_ids"]
    with torch.no_grad():
        cache = model(ids[:, :-1]).past_key_values
    logits: torch.Tensor = model(ids[:, -1:], past_key_values=cache, **how).logits
    return logits


def test_compressed_weights_are_made_plain_for_it() -> None:
    model = tiny.build("glm4_moe_lite")
    for _, module, _ in latent_sites(model):
        module.kv_b_proj = Int8Linear.from_linear(module.kv_b_proj)  # type: ignore[arg-type]
        check_absorbed(module)
    with torch.no_grad():
        wanted = decode_step(model)
        absorbing(model)
        got = decode_step(model)
    assert served == [1, 1]
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)  # that layer computes in bfloat16 on a CPU


def test_where_gradients_are_wanted_the_librarys_way_is_taken() -> None:
    model = tiny.build("glm4_moe_lite")
    wanted = decode_step(model)
    absorbing(model)
    got = decode_step(model)
    assert served == []
    torch.testing.assert_close(got, wanted)
    got.sum().backward()
    assert model.model.layers[0].self_attn.kv_b_proj.weight.grad.any()


def test_what_comes_to_stand_before_the_weight_later_is_not_read_past() -> None:
    model = tiny.build("glm4_moe_lite")
    absorbing(model)
    seen: list[int] = []
    layer = model.model.layers[0].self_attn.kv_b_proj
    layer.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[2]))
    with torch.no_grad():
        decode_step(model)
    assert len(served) == 1  # the other layer
    assert len(seen) == 2


def test_another_attention_function_gets_keys_and_values() -> None:
    model = tiny.build("glm4_moe_lite")
    with torch.no_grad():
        wanted = decode_step(model)
        absorbing(model)
        for name in ("eager", "sdpa"):
            model.set_attn_implementation(name)
            torch.testing.assert_close(decode_step(model), wanted, rtol=1e-4, atol=1e-4)
    assert served == []


def test_a_deep_copy_reads_its_own_weights() -> None:
    model = tiny.build("glm4_moe_lite")
    absorbing(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        wanted = decode_step(twin)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(decode_step(twin), wanted)
    assert twin.model.layers[0].self_attn.expand_kv.__self__ is twin.model.layers[0].self_attn
    assert served == [1] * 4


def test_one_compiled_graph_takes_a_decode_step() -> None:
    model = tiny.build("glm4_moe_lite")
    absorbing(model)
    attend = torch.compile(model.model.layers[0].self_attn, backend="eager", fullgraph=True)
    x, rotation = torch.randn(1, 1, 64), (torch.randn(1, 1, 8), torch.randn(1, 1, 8))
    cache = [torch.randn(1, 1, 9, 32), torch.randn(1, 1, 9, 8)]

    class Kept:
        def update(self, latent: torch.Tensor, rope: torch.Tensor, layer: int) -> tuple[torch.Tensor, ...]:
            return torch.cat((cache[0], latent), 2), torch.cat((cache[1], rope), 2)

    with torch.no_grad():
        got = attend(x, rotation, None, past_key_values=Kept())[0]
        torch.testing.assert_close(got, model.model.layers[0].self_attn(x, rotation, None, past_key_values=Kept())[0])


def test_the_check_passes_for_every_dtype_and_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = latent_sites(tiny.build("glm4_moe_lite", dtype))[0][1]
        check_absorbed(module)
    right = absorbed_decode.latent_attention
    monkeypatch.setattr(absorbed_decode, "latent_attention", lambda *given, **how: right(*given, **how) * 1.05)
    with pytest.raises(InvalidSetting, match=r"is off by 0\.0"):
        check_absorbed(module)
    with pytest.raises(InvalidModel, match="no absorbed form"):
        check_absorbed(nn.Linear(2, 2))
