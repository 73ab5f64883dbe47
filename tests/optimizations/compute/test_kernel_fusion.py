"""kernel_fusion: the library's bits where asked for, the same tokens where products are merged, and no byte more."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from inference_pio.anatomy import fused_attention, fused_layer, fused_mlp, fused_norm
from inference_pio.anatomy.fused_parts import fused_parts
from inference_pio.errors import InvalidSetting, NoEffect
from inference_pio.formats.fp8 import Fp8Linear
from inference_pio.formats.int8 import Int8Linear
from inference_pio.kernels import elementwise_check
from inference_pio.kernels.rms_norm import rms_norm
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.compute import kernel_fusion as room
from inference_pio.optimizations.compute.kernel_fusion import LEVELS, KernelFusion
from inference_pio.undo.slots import storage_key
from tests import tiny
from tests.decoding.conftest import Reading
from tests.quality import reference_models
from tests.sweep import Case

FAMILIES = [name for name in tiny.HF_NAMES if name != "gpt2"]
DTYPES = [torch.float32, torch.bfloat16]
EXACT: list[dict[str, Any]] = [{"exact": True}, {"level": "elementwise"}, {"level": "elementwise", "exact": True}]


def order(case: Case, **parameters: Any) -> Any:
    """The receipt of the optimization, ordered with these parameters."""
    parameters = {"level": "merged", **parameters}
    case.manager.apply_optimizations(case.model, ["kernel_fusion"], parameters={"kernel_fusion": parameters})
    return next(one for one in case.manager.get_receipts(case.model) if one.name == "kernel_fusion")


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each fused kernel was called."""
    calls: dict[str, int] = {}

    def watch(module: Any, name: str) -> None:
        kernel = getattr(module, name)

        def counted(*given: Any, **how: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return kernel(*given, **how)

        monkeypatch.setattr(module, name, counted)

    for module, name in (
        (fused_norm, "rms_norm"), (fused_norm, "add_rms_norm"), (fused_mlp, "silu_mul"),
        (fused_attention, "norm_rotate"), (fused_layer, "added_and_normed"),
    ):  # fmt: skip
        watch(module, name)
    return calls


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameters", EXACT, ids=str)
def test_exact_logits_are_the_librarys_to_the_bit(
    name: str, dtype: torch.dtype, parameters: dict[str, Any], kernel_calls: dict[str, int]
) -> None:
    case = Case(name, dtype)
    order(case, **parameters)
    assert torch.equal(tiny.logits(case.model, name), case.logits)
    wanted = {"rms_norm", "add_rms_norm", "silu_mul", "norm_rotate", "added_and_normed"}
    assert kernel_calls.keys() == wanted - ({"norm_rotate"} if name == "glm4_moe_lite" else set())
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_logits_are_the_librarys_up_to_rounding(name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype)
    receipt = order(case)
    assert receipt.decision == {"level": "merged", "separate": {}}
    scale = case.logits.abs().max().item()
    limit = (1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps) * scale
    torch.testing.assert_close(tiny.logits(case.model, name), case.logits, rtol=0, atol=limit)


@pytest.mark.parametrize("name", reference_models.NAMES)
def test_trained_models_write_the_same_64_tokens(name: str) -> None:
    model = reference_models.load(name, torch.float32)
    prompt = reference_models.draw(0, windows=2, length=96)
    asked = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    before = model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    ModularOptimizationManager().apply_optimizations(model, ["kernel_fusion"])
    after = model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    assert before.shape[1] > 96 + 32
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_takes_no_memory_and_changes_no_name(name: str) -> None:
    case = Case(name)
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    receipt = order(case)
    assert receipt.weight_bytes_before == receipt.weight_bytes_after
    assert receipt.held_bytes == receipt.parked_bytes == 0
    storages = {storage_key(one): one.untyped_storage().nbytes() for one in case.model.parameters()}
    assert sum(storages.values()) == sum(one.nbytes for one in case.model.parameters())
    merged = {key for key in storages if sum(storage_key(one) == key for one in case.model.parameters()) > 1}
    assert len(merged) >= 2
    assert list(case.model.state_dict()) == list(state)
    assert all(torch.equal(case.model.state_dict()[key], value) for key, value in state.items())
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
    assert len({storage_key(one) for one in case.model.parameters()}) == len(list(case.model.parameters()))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_what_would_have_been(name: str, tmp_path: Path) -> None:
    case = Case(name)
    case.model.save_pretrained(tmp_path / "before")
    order(case)
    case.model.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes(), path.name
    case.manager.remove_optimizations(case.model)


def test_the_receipt_counts_what_is_fused() -> None:
    receipt = order(Case("qwen3"))
    assert receipt.backend == "torch"
    assert receipt.notes == (
        "fused: 3 decoder layers, 3 attentions, 13 norms, 3 MLPs",
        "queries, keys and values are one product in 3 layers",
        "gate and up are one product in 3 layers",
    )
    receipt = order(Case("qwen3"), exact=True)
    assert receipt.notes[1].startswith("layers of one input are kept separate: exact=True")


def test_status_says_what_serves() -> None:
    case = Case("llama")
    order(case)
    told = case.manager.get_optimization_status(case.model)
    assert "torch" in str(told)
    assert "queries, keys and values are one product in 3 layers" in str(told)


def test_few_rows_need_a_gpu_and_a_graph_goes_without() -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match=r"level='gemv'.*needs an NVIDIA GPU.*level='merged'; nothing"):
        order(case, level="gemv")
    case.check_untouched()
    (said,) = [note for note in order(case, level="graph").notes if "rows" in note]
    assert said == "a few rows are multiplied by torch: it needs an NVIDIA GPU, and the tensors are on cpu"
    (said,) = [note for note in order(Case("llama"), level="graph", exact=True).notes if "rows" in note]
    assert said.endswith("as the library does: exact=True, and our sums have another order")


def test_auto_goes_all_the_way_where_steps_are_ours_and_merges_elsewhere() -> None:
    fusion = KernelFusion()
    assert fusion._level() == LEVELS[-1] == "graph"
    fusion.device = torch.device("cuda")
    assert fusion._level() == "graph"
    fusion.device = torch.device("mps")
    assert fusion._level() == "merged"


def test_models_without_a_place_for_it_are_told_why() -> None:
    with pytest.raises(NoEffect, match="it is no norm with one weight"):
        order(Case("gpt2"))
    with pytest.raises(NoEffect, match="there is no place in this model for it"):
        order(Case("plain"))


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_codes_of_rows_lie_side_by_side_and_others_are_kept_separate(format: str) -> None:
    case = Case("qwen3")
    case.apply("tensor_compression", parameters={"tensor_compression": {"format": format}})
    before = tiny.logits(case.model, "qwen3")
    receipt = order(case)
    layers = [module for module in case.model.modules() if isinstance(module, Int8Linear | Fp8Linear)]
    assert len({storage_key(layer.held("weight")[0]) for layer in layers}) == (3 * 4 if format == "int8" else 3 * 7)
    torch.testing.assert_close(tiny.logits(case.model, "qwen3"), before)
    separate = {} if format == "int8" else {"one of its layers is a Fp8Linear, and no plain Linear": 6}
    assert Counter(receipt.decision["separate"].values()) == separate
    case.manager.remove_optimizations(case.model, ["tensor_compression"])
    alone = Case("qwen3")
    order(alone)
    assert torch.equal(tiny.logits(case.model, "qwen3"), tiny.logits(alone.model, "qwen3"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_it_serves_whatever_attention_function_the_model_runs(kernel_calls: dict[str, int]) -> None:
    case = Case("qwen3")
    case.apply("flash_attention")
    flash = tiny.logits(case.model, "qwen3")
    order(case, exact=True)
    assert torch.equal(tiny.logits(case.model, "qwen3"), flash)
    assert kernel_calls["norm_rotate"] == 6
    case.manager.remove_optimizations(case.model, ["flash_attention"])
    assert torch.equal(tiny.logits(case.model, "qwen3"), case.logits)
    case.model.set_attn_implementation("eager")
    eager = tiny.build("qwen3")
    eager.set_attn_implementation("eager")  # type: ignore[operator]
    assert torch.equal(tiny.logits(case.model, "qwen3"), tiny.logits(eager, "qwen3"))


def test_adapters_are_called_and_learn(kernel_calls: dict[str, int]) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
        adapted: Any = get_peft_model(tiny.build("llama"), LoraConfig(target_modules=["q_proj", "up_proj"]))
    nn.init.normal_(next(one for path, one in adapted.named_parameters() if "lora_B" in path))
    adapted.eval()
    given = tiny.inputs("llama", adapted)
    with torch.no_grad():
        before = adapted(**given).logits
    manager = ModularOptimizationManager()
    manager.apply_optimizations(adapted, ["kernel_fusion"])
    receipt = manager.get_receipts(adapted)[0]
    assert set(receipt.decision["separate"].values()) == {"an adapter is wrapped around one of its layers"}
    with torch.no_grad():
        assert torch.equal(adapted(**given).logits, before)
    assert kernel_calls["silu_mul"] == 3
    adapted(**given).logits.sum().backward()
    assert all(one.grad is not None for path, one in adapted.named_parameters() if "lora_" in path)
    assert kernel_calls["silu_mul"] == 3


def test_training_and_compiling_take_the_librarys_forward(kernel_calls: dict[str, int]) -> None:
    case = Case("llama")
    order(case)
    given = tiny.inputs("llama", case.model)
    case.model(**given).logits.sum().backward()
    assert all(one.grad is not None for one in case.model.parameters())
    case.model.train()
    with torch.no_grad():
        case.model(**given)
    case.model.eval()
    assert kernel_calls == {}
    with torch.no_grad():
        compiled = torch.compile(case.model.model.layers[0], backend="eager", fullgraph=True)
        x = torch.randn(1, 3, tiny.HIDDEN)
        turns = case.model.model.rotary_emb(x, torch.arange(3)[None])
        got = compiled(x, position_embeddings=turns)
        assert kernel_calls == {}
        torch.testing.assert_close(got, case.model.model.layers[0](x, position_embeddings=turns))
    assert kernel_calls != {}


def test_hooks_on_any_part_see_what_they_saw() -> None:
    """On every module a hook: its inputs and outputs are those of the library."""

    def outputs(model: nn.Module) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for path, module in model.named_modules():

            def keep(module: nn.Module, given: Any, out: Any, path: str = path) -> None:
                found[path] = out[0] if isinstance(out, tuple) else out

            module.register_forward_hook(keep)
        with torch.no_grad():
            model(**tiny.inputs("qwen3", model))
        return {path: out for path, out in found.items() if isinstance(out, torch.Tensor)}

    case = Case("qwen3")
    wanted = outputs(tiny.build("qwen3"))
    order(case)
    got = outputs(case.model)
    assert got.keys() == wanted.keys()
    assert len(got) > 40
    assert all(torch.equal(got[path], wanted[path]) for path in wanted)


def test_hidden_states_are_collected_as_before() -> None:
    case = Case("qwen3_moe")
    asked = {**tiny.inputs("qwen3_moe", case.model), "output_hidden_states": True, "output_router_logits": True}
    with torch.no_grad():
        before = case.model(**asked)
        order(case, exact=True)
        after = case.model(**asked)
    for one, other in zip(before.hidden_states + before.router_logits, after.hidden_states + after.router_logits,
                          strict=True):  # fmt: skip
        assert torch.equal(one, other)


def test_a_copy_computes_with_its_own_weights() -> None:
    case = Case("qwen3")
    order(case)
    merged = tiny.logits(case.model, "qwen3")
    copied = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert tiny.logits(copied, "qwen3").abs().max() == 0
    assert torch.equal(tiny.logits(case.model, "qwen3"), merged)


def test_overridden_forwards_and_unknown_classes_are_left_alone() -> None:
    case = Case("llama")
    layer = case.model.model.layers[0]
    layer.mlp.forward = layer.mlp.forward
    layer.post_attention_layernorm = nn.LayerNorm(tiny.HIDDEN)
    receipt = order(case)
    skipped = {site.path: site.skip for site in receipt.sites if site.skip}
    assert skipped["model.layers.0.mlp"] == "its forward is overridden by somebody else"
    assert "no norm with one weight" in skipped["model.layers.0.post_attention_layernorm"]
    assert skipped["model.layers.0"].startswith("the norm after its attention is passed over")
    assert "model.layers.1.mlp" not in skipped


def test_a_kernel_that_fails_its_check_is_never_put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "choose_elementwise_backend", lambda device, dtype: "triton")
    case = Case("llama")
    order(case)
    case.manager.remove_optimizations(case.model)
    elementwise_check.why_elementwise_fails.cache_clear()
    monkeypatch.setattr(elementwise_check, "silu_mul", lambda gate, up: gate * up)
    with pytest.raises(InvalidSetting, match="a fused kernel fails its check on cpu: the gate of MLPs"):
        order(case)
    elementwise_check.why_elementwise_fails.cache_clear()
    case.check_untouched()


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["merged", "gemv"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_logits_are_the_librarys_up_to_rounding(name: str, dtype: torch.dtype, level: str) -> None:
    model: Any = tiny.build(name, dtype).cuda()
    before = tiny.logits(model, name)
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["kernel_fusion"], parameters={"kernel_fusion": {"level": level}})
    assert manager.get_receipts(model)[0].backend == "triton"
    limit = (1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps) * before.abs().max().item()
    torch.testing.assert_close(tiny.logits(model, name), before, rtol=0, atol=limit)
    manager.remove_optimizations(model)
    assert torch.equal(tiny.logits(model, name), before)


def test_what_is_fused_is_what_the_library_computes() -> None:
    """The norm that the others are held against is the library's own."""
    model = tiny.build("llama", torch.bfloat16)
    for part in fused_parts(model):
        if part.role == "norm":
            x = torch.randn(3, tiny.HIDDEN).bfloat16()
            with torch.no_grad():
                assert torch.equal(part.module(x), rms_norm(x, part.module.weight, 1e-6))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("qwen3", "prompts of up to 2048 tokens are read by recorded forwards, others by the library's"),
        ("qwen3_vl", "prompts are read by the library's forward: its positions hang on pictures"),
    ],
)
def test_the_receipt_tells_who_reads_prompts(name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "choose_operations", lambda *given, **how: Reading())
    case = Case(name)
    case.apply("kernel_fusion")
    assert told in case.manager.get_receipts(case.model)[0].notes
