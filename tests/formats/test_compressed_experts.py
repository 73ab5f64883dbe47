"""Compressed experts against the library's own, on the weights that their codes stand for, in every format."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeepseekV4Config, GptOssConfig
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidModel, RefusedOnOptimized
from inference_pio.formats import compressed_experts
from inference_pio.formats.compressed_experts import CompressedExperts, experts_layout, gate_is_silu
from inference_pio.kernels import few_experts, fp8, int4, int8
from tests import tiny
from tests.formats.help import EACH_FORMAT, experts_of
from tests.kernels.test_few_experts import put_on_a_gpu
from tests.kernels.triton.conftest import interpreted

__all__ = ["interpreted"]
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")

MODELS = ["qwen3_moe", "glm4_moe", "glm4_moe_lite"]
Routing = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def plain_experts(model_name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The library's experts: random, and 32 and 64 wide, which every format takes."""
    config = tiny.CONFIGS[model_name]()
    config.moe_intermediate_size = 64
    return tiny.build(model_name, dtype, seed, config).model.layers[1].mlp.experts


def pair(name: str, model_name: str, dtype: torch.dtype = torch.float32) -> tuple[CompressedExperts, nn.Module]:
    """The compressed form, and the library's module with exactly the weights that it stands for."""
    original = plain_experts(model_name, dtype)
    module = experts_of(name, original)
    with torch.no_grad():
        for parameter, weight in zip((original.gate_up_proj, original.down_proj), module.dequantize(), strict=True):
            parameter.copy_(weight)
    return module, original


def routing(experts: nn.Module, tokens: int, dtype: torch.dtype = torch.float32) -> Routing:
    generator = torch.Generator().manual_seed(tokens)
    count = experts.num_experts
    chosen = [torch.randperm(count, generator=generator)[:2] for _ in range(tokens)]
    index = torch.stack(chosen) if chosen else torch.zeros(0, 2, dtype=torch.long)
    states = torch.randn(tokens, experts.hidden_dim, generator=generator).to(dtype)
    return states, index, torch.rand(tokens, 2, generator=generator).to(dtype)


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, so that nothing but the order of sums may differ."""
    for module in (int8, int4):
        monkeypatch.setattr(module, "_CHOSEN", {})
    monkeypatch.setattr(int8, "has_int8_packed_matmul", lambda: False)
    monkeypatch.setattr(int4, "int4_packed_order", lambda: None)
    monkeypatch.setattr(fp8, "has_fast_bfloat16_matmul", lambda: False)


@pytest.mark.usefixtures("in_float32")
@EACH_FORMAT
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_it_gives_the_librarys_result(name: str, model_name: str, implementation: str, tokens: int) -> None:
    module, original = pair(name, model_name)
    original.config._experts_implementation = implementation
    given = routing(original, tokens)
    with torch.no_grad():
        torch.testing.assert_close(module(*given), original(*given), rtol=1e-5, atol=1e-6)


@EACH_FORMAT
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_in_bfloat16_it_stays_within_a_few_roundings(name: str, model_name: str, tokens: int) -> None:
    module, original = pair(name, model_name, torch.bfloat16)
    given = routing(original, tokens, torch.bfloat16)
    with torch.no_grad():
        got, want = module(*given), original(*given)
    assert got.dtype is torch.bfloat16
    assert (got - want).abs().max() <= 0.02 * want.abs().max()


@pytest.mark.usefixtures("in_float32")
@EACH_FORMAT
def test_experts_that_live_elsewhere_add_nothing(name: str) -> None:
    module, original = pair(name, "glm4_moe")
    states, index, weights = routing(original, 6)
    away = torch.zeros(6, 2, dtype=torch.bool)
    away[0, 0] = away[3, 1] = away[5, :] = True
    original.config._experts_implementation = "eager"
    with torch.no_grad():
        got = module(states, index.masked_fill(away, original.num_experts), weights)
        torch.testing.assert_close(got, original(states, index, weights.masked_fill(away, 0.0)))
    assert not got[5].any()


AWKWARD = {
    "all choose one": [[2, 5]] * 9,
    "one twice": [[1, 1], [0, 1], [1, 1]],
    "the last alone": [[7, 7]],
    "elsewhere and nowhere": [[8, -1], [3, 100], [-1, -1]],
}


def one_by_one(module: CompressedExperts, states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> Any:
    """What each token's experts make of it, from the definition."""
    gate_up, down = module.dequantize()
    found = torch.zeros_like(states)
    for token, chosen in enumerate(index.tolist()):
        for slot, expert in enumerate(chosen):
            if 0 <= expert < len(down):
                gate, up = (gate_up[expert] @ states[token]).chunk(2)
                found[token] += weights[token, slot] * (down[expert] @ (F.silu(gate) * up))
    return found


def awkward(routing: str) -> Routing:
    chance, index = torch.Generator().manual_seed(0), torch.tensor(AWKWARD[routing])
    return torch.randn(len(index), 64, generator=chance), index, torch.rand(index.shape, generator=chance)


@pytest.mark.usefixtures("in_float32")
@EACH_FORMAT
@pytest.mark.parametrize("routing", AWKWARD)
def test_awkward_choices_are_computed_and_no_expert_that_nobody_chose(
    name: str, routing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = pair(name, "qwen3_moe")
    asked, expert = list[int](), module._expert
    monkeypatch.setattr(module, "_expert", lambda number, rows: asked.append(number) or expert(number, rows))
    given = awkward(routing)
    torch.testing.assert_close(module(*given), one_by_one(module, *given), rtol=1e-4, atol=1e-5)
    assert asked == sorted({one for one in given[1].flatten().tolist() if 0 <= one < 8})


def by_the_kernels(name: str, routing: str) -> None:
    """As on a GPU, which holds int4 in words."""
    module, _ = pair(name, "qwen3_moe")
    if name == "int4":
        for part in ("gate_up_int4", "down_int4"):
            module._buffers[part] = int4.words_of(module._buffers[part])
    given = awkward(routing)
    given = (given[0][:3], given[1][:3], given[2][:3])
    with pytest.MonkeyPatch.context() as patch:
        put_on_a_gpu(patch)
        patch.setattr(CompressedExperts, "_expert_by_expert", None)
        found = module(*given)
    torch.testing.assert_close(found, one_by_one(module, *given), rtol=1e-4, atol=1e-5)


@needs_triton
@EACH_FORMAT
@pytest.mark.parametrize("routing", AWKWARD)
def test_a_few_tokens_go_through_the_kernels(name: str, routing: str, interpreted: Callable[..., Any]) -> None:
    interpreted(by_the_kernels, name, routing)


@EACH_FORMAT
def test_only_gates_by_silu_go_through_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    module, _ = pair(name, "qwen3_moe")
    assert not module.takes_two_launches(device, torch.bfloat16)
    monkeypatch.setattr(compressed_experts, "choose_few_experts_backend", lambda *where: few_experts.TRITON)
    assert module.takes_two_launches(device, torch.bfloat16)
    for change in ({"act_fn": nn.GELU()}, {"_apply_gate": cut_off}, {"_apply_gate": lambda self, both: both}):
        original = plain_experts("qwen3_moe")
        kind = type("Other", (type(original),), {name: one for name, one in change.items() if name != "act_fn"})
        original.__class__ = kind
        original.act_fn = change.get("act_fn", original.act_fn)
        assert not gate_is_silu(SimpleNamespace(experts_class=kind, act_fn=original.act_fn))
        assert not experts_of(name, original).takes_two_launches(device, torch.bfloat16)
    with torch.device("meta"):
        assert experts_of(name, plain_experts("qwen3_moe").to("meta")).gates_by_silu


def cut_off(self: Any, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, -1)
    return F.silu(gate.clamp(max=100)) * up


@EACH_FORMAT
def test_no_tokens_are_no_error(name: str) -> None:
    module, original = pair(name, "qwen3_moe")
    assert module(*routing(original, 0)).shape == (0, 64)


@pytest.mark.usefixtures("in_float32")
@EACH_FORMAT
def test_gradients_flow_to_states_and_routing_weights(name: str) -> None:
    module, original = pair(name, "glm4_moe_lite")
    original.config._experts_implementation = "eager"
    gradients = []
    for experts in (module, original):
        states, index, weights = routing(original, 9)
        states.requires_grad_(), weights.requires_grad_()
        experts(states, index, weights).pow(2).sum().backward()
        gradients.append((states.grad, weights.grad))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("in_float32")
@EACH_FORMAT
def test_a_gating_function_of_the_class_is_kept(name: str) -> None:
    config = DeepseekV4Config(hidden_size=32, moe_intermediate_size=32, n_routed_experts=4, swiglu_limit=0.1)
    original = DeepseekV4Experts(config)
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.3)
    module = experts_of(name, original)
    with torch.no_grad():
        for parameter, weight in zip(original.parameters(), module.dequantize(), strict=True):
            parameter.copy_(weight)
    original.config._experts_implementation = "eager"
    states, index, weights = routing(_Sizes(4, 32), 5)
    with torch.no_grad():
        torch.testing.assert_close(module(states, index, weights), original(states, index, weights))


class _Sizes(nn.Module):
    def __init__(self, num_experts: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim = num_experts, hidden_dim


@EACH_FORMAT
def test_layouts_it_does_not_know_are_refused_with_the_reason(name: str) -> None:
    transposed = GptOssExperts(GptOssConfig(hidden_size=32, intermediate_size=16, num_local_experts=4))
    assert experts_layout(transposed) == "its experts are stored transposed, [experts, in, out]"
    with pytest.raises(InvalidModel, match=f"GptOssExperts has no {name} form: its experts are stored transposed"):
        experts_of(name, transposed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"has_bias": True}, "its experts have biases"),
        ({"has_post_expert_norm": True}, "its experts end in a norm"),
        ({"is_concatenated": False}, "gate and up are interleaved row by row"),
        ({"has_gate": False}, "it does not follow the library's interface of gated experts"),
        ({"extra": nn.Parameter(torch.ones(2))}, "it holds more tensors than gate_up_proj and down_proj"),
        ({"down_proj": nn.Parameter(torch.ones(8, 64, 2))}, "its shapes (8, 128, 64) and (8, 64, 2) are not"),
    ],
)
def test_each_deviation_has_its_reason(change: dict[str, object], reason: str) -> None:
    experts = plain_experts("qwen3_moe")
    assert experts_layout(experts) is None
    for name, value in change.items():
        setattr(experts, name, value)
    assert (experts_layout(experts) or "").startswith(reason)


@EACH_FORMAT
def test_a_compressed_module_is_not_compressed_again(name: str) -> None:
    assert experts_layout(experts_of(name, plain_experts("qwen3_moe"))) is not None


@EACH_FORMAT
def test_codes_may_be_made_by_another_rounding(name: str) -> None:
    original = plain_experts("qwen3_moe")
    kind = type(experts_of(name, original))
    asked: list[str] = []

    def doubled(weight_name: str, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(weight_name)
        return kind.quantize(2 * weight, 32)

    made = kind.from_experts(original, 32, doubled)
    assert asked == ["gate_up_proj", "down_proj"]
    for got, want in zip(made.dequantize(), experts_of(name, original).dequantize(), strict=True):
        assert torch.equal(got, 2 * want)


@EACH_FORMAT
def test_copies_pickles_and_loaded_states_compute_the_same(name: str) -> None:
    module, original = pair(name, "qwen3_moe")
    given = routing(original, 5)
    other = experts_of(name, plain_experts("qwen3_moe", seed=7))
    other.load_state_dict(module.state_dict())
    assert list(module.state_dict()) == [f"gate_up_{name}", "gate_up_scale", f"down_{name}", "down_scale"]
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(twin(*given), module(*given))


@EACH_FORMAT
def test_a_checkpoint_of_the_original_is_refused(name: str) -> None:
    module, original = pair(name, "qwen3_moe")
    with pytest.raises(RefusedOnOptimized, match="gate_up_proj"):
        module.load_state_dict(original.state_dict(), strict=False)


@EACH_FORMAT
def test_on_the_meta_device_it_has_shapes_and_no_values(name: str) -> None:
    codes, scale = experts_of(name, plain_experts("qwen3_moe").to("meta")).held("down")
    packed = 32 if name == "int4" else 64
    assert (codes.is_meta, scale.is_meta, codes.shape) == (True, True, (8, 64, packed))
    assert scale.shape == ((8, 2, 64, 2) if name == "int4" else (8, 64))


@EACH_FORMAT
def test_it_prints_its_sizes(name: str) -> None:
    shown = "experts=8, hidden=64, intermediate=64" + (", group=32" if name == "int4" else "")
    assert experts_of(name, plain_experts("qwen3_moe")).extra_repr() == shown


@EACH_FORMAT
@pytest.mark.parametrize("model_name", MODELS)
def test_a_model_with_compressed_experts_answers_almost_alike(name: str, model_name: str) -> None:
    config = tiny.CONFIGS[model_name]()
    config.moe_intermediate_size = 64
    model = tiny.build(model_name, config=config)
    plain = tiny.logits(model, model_name).log_softmax(-1)
    block = model.model.layers[1].mlp
    block.experts = experts_of(name, block.experts)
    logits = tiny.logits(model, model_name).log_softmax(-1)
    assert (plain.exp() * (plain - logits)).sum(-1).mean() < {"int8": 1e-3, "fp8": 2e-3, "int4": 3e-2}[name]
