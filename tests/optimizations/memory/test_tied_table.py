"""A head that is tied to its embedding: one table of codes for both, whose ties are as firm as those of the weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM

import inference_pio
from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.walk import path_of
from inference_pio.artifact import export, load, save
from inference_pio.decoding.takeover import engine_of
from inference_pio.errors import ArtifactError, InvalidModel
from inference_pio.formats.compressed_embedding import CompressedEmbedding
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.manager import ModularOptimizationManager
from inference_pio.plan.target import Wanted
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.survey import named_tensors
from tests import tiny
from tests.model_folder import write_model_folder
from tests.quality import reference_models
from tests.sweep import Case

TIED = ["qwen3", "qwen3_vl", "gpt2"]
EACH_HEAD = pytest.mark.parametrize("head", [True, "fp8"])
TEXT = [[(7 * token * token + row) % 120 + 1 for token in range(64)] for row in range(16)]


def applied(name: str, dtype: torch.dtype = torch.float32, how: Any = None, **asked: Any) -> Case:
    case = Case(name, dtype)
    case.manager.apply_optimizations(
        case.model, ["tensor_compression"], parameters={"tensor_compression": asked}, **(how or {})
    )
    return case


def ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def is_one_table(model: Any) -> bool:
    embedding, head = ends(model)
    both = isinstance(embedding, CompressedEmbedding) and isinstance(head, CompressedLinear)
    return both and head.table_of is embedding and not head._buffers and not head.__dict__.keys() & embedding._buffers


def sites_of(model: nn.Module, **asked: Any) -> dict[str, str | None]:
    plan = ModularOptimizationManager().plan(model, [Wanted("tensor_compression", asked)])
    return {site.path: site.skip for site in plan.steps[0].sites}


@EACH_HEAD
@pytest.mark.parametrize("name", TIED)
def test_one_table_serves_both_and_is_undone_to_the_bit(name: str, head: bool | str) -> None:
    case = applied(name, head=head)
    assert is_one_table(case.model)
    embedding, layer = ends(case.model)
    assert layer.format == (head if isinstance(head, str) else "int8")
    after = tiny.logits(case.model, name)
    noise = (after - case.logits).pow(2).mean()
    assert 0 < noise < 0.01 * case.logits.pow(2).mean()
    ids = torch.tensor([[1, 2, 127]])
    assert torch.equal(embedding(ids), layer.dequantize()[ids])
    roles = roles_of(case.model)
    assert {roles[path_of(case.model, one)] for one in (embedding, layer)} == {"embedding", "head"}
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("keep", ["host", "disk", "device"])
def test_the_original_waits_once_and_is_told_once(keep: str) -> None:
    case = applied("qwen3", how={"keep_originals": keep}, head=True, targets=["head"], kv_cache="none")
    receipt = case.manager.get_receipts(case.model)[0]
    table = 128 * 64 * 4
    assert {site.path: site.nbytes for site in receipt.acted} == {"lm_head": 0, "model.embed_tokens": table}
    assert receipt.held_bytes + receipt.parked_bytes == table
    assert receipt.weight_bytes_before - receipt.weight_bytes_after == table - 128 * 64 - 128 * 2
    coverage = receipt.decision["coverage"]
    assert (coverage["parameters"], coverage["roles"]["embedding"]["parameters"]) == (128 * 64, 128 * 64)
    assert receipt.decision["tied"] == {"lm_head": "model.embed_tokens"}
    assert any("lm_head is tied to model.embed_tokens: one table in int8" in note for note in receipt.notes)
    planned = case.manager.plan(tiny.build("qwen3"), [Wanted("tensor_compression", {"targets": ["head"]})]).steps[0]
    assert planned.decision["coverage"] == coverage
    assert planned.weight_bytes_after == receipt.weight_bytes_after
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("name", TIED)
def test_the_library_finds_nothing_to_tie_and_leaves_one_table(name: str) -> None:
    case = applied(name, head=True)
    logits = tiny.logits(case.model, name)
    case.model.tie_weights()
    case.model.tie_weights(recompute_mapping=False)
    assert is_one_table(case.model)
    assert case.model.config.tie_word_embeddings
    assert not any("head" in key and "weight" in key for key in case.model.state_dict())
    assert torch.equal(tiny.logits(case.model, name), logits)
    assert is_one_table(copy.deepcopy(case.model))


@EACH_HEAD
@pytest.mark.parametrize("name", TIED)
def test_a_call_with_other_tensors_computes_with_those_and_leaves_its_own(name: str, head: bool | str) -> None:
    case, other = applied(name, head=head), applied(name, head=head)
    with torch.no_grad():
        ends(other.model)[0].held("weight")[1].mul_(2)
    own = {**dict(case.model.named_parameters()), **dict(case.model.named_buffers())}
    given = {**dict(other.model.named_parameters()), **dict(other.model.named_buffers())}
    inputs = {**tiny.inputs(name, case.model), "use_cache": False}
    with torch.no_grad():
        found, logits = functional_call(case.model, given, kwargs=inputs).logits, case.model(**inputs).logits
        assert torch.equal(found, other.model(**inputs).logits)
    assert not torch.equal(found, logits)
    assert all(tensor is own[key] for key, tensor in named_tensors(case.model) if key in own)
    assert is_one_table(case.model)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_the_ends_cannot_be_resized_and_nothing_is_touched_by_the_attempt() -> None:
    case = applied("qwen3", head=True)
    logits = tiny.logits(case.model, "qwen3")
    with pytest.raises(AttributeError, match=r"int8 codes .*reset_model_optimizations"):
        case.model.resize_token_embeddings(200)
    assert is_one_table(case.model)
    assert torch.equal(tiny.logits(case.model, "qwen3"), logits)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@EACH_HEAD
@pytest.mark.parametrize("name", ["qwen3", "qwen3_vl"])
def test_a_saved_table_comes_back_tied_with_the_same_bits(name: str, head: bool | str, tmp_path: Path) -> None:
    case = applied(name, torch.bfloat16, head=head)
    save(case.model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert is_one_table(again)
    assert ends(again)[0].dtype is torch.bfloat16
    assert torch.equal(tiny.logits(again, name), tiny.logits(case.model, name))
    again.tie_weights()  # type: ignore[operator]
    assert is_one_table(again)


def test_the_original_comes_from_the_models_own_files(tmp_path: Path) -> None:
    tiny.build("qwen3").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    before, manager = fingerprint(model), ModularOptimizationManager()
    asked = {"tensor_compression": {"head": True}}
    manager.apply_optimizations(model, ["tensor_compression"], parameters=asked, keep_originals="checkpoint")
    assert manager.get_receipts(model)[0].held_bytes < 2000
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_a_failure_between_the_two_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    case, replace = Case("qwen3"), Journal.replace

    def failing(journal: Journal, module: nn.Module, new: nn.Module) -> nn.Module:
        if isinstance(new, CompressedLinear) and new.table_of is not None and not new.held("weight")[0].is_meta:
            raise KeyboardInterrupt
        return replace(journal, module, new)

    monkeypatch.setattr(Journal, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        case.apply("tensor_compression", parameters={"tensor_compression": {"head": True}})
    case.check_untouched()


def test_a_table_that_holds_no_numbers_is_refused_by_name() -> None:
    case = Case("qwen3")
    with torch.no_grad():
        case.model.lm_head.weight[3, 5] = float("nan")
    with pytest.raises(InvalidModel, match=r"lm_head\.weight holds NaN"):
        applied_to(case.model, head=True)


def applied_to(model: nn.Module, **asked: Any) -> None:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"], parameters={"tensor_compression": asked})


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"head": "int4", "group_size": 32}, "int4 codes cannot be looked up row by row (head='fp8' or head='int8'"),
        ({"head": "exponent12"}, "its weights are float32"),
        ({"head": True, "skip": ["*.embed_tokens"]}, "`skip` names it ('*.embed_tokens')"),
        ({"head": True, "skip": ["lm_head"]}, "`skip` names it ('lm_head')"),
        ({}, "the head is kept"),
    ],
)
def test_what_keeps_the_head_keeps_both_with_the_reason(asked: dict[str, Any], reason: str) -> None:
    told = sites_of(tiny.build("qwen3"), **asked)
    assert reason in str(told["lm_head"])
    assert str(told["model.embed_tokens"]).startswith("embeddings are kept")


def test_an_embedding_that_does_more_than_look_up_is_kept_with_its_head() -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 8

    for other, reason in ((Scaled(128, 64), "Scaled"), (nn.Embedding(128, 64, max_norm=1.0), "max_norm")):
        model: Any = tiny.build("qwen3")
        model.model.embed_tokens = other
        model.lm_head.weight = other.weight
        assert reason in str(sites_of(model, head=True)["lm_head"])


class Listing(nn.Module):
    """No model of the library's, which names what it ties as the library did once, by the ends alone."""

    _tied_weights_keys = ("head.weight",)

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(128, 64), nn.Linear(64, 128)
        self.head.weight = self.table.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.table(ids))


def test_a_tie_that_no_mapping_tells_is_one_table_too() -> None:
    model, ids = Listing(), torch.tensor([[1, 2, 127]])
    before, logits, manager = fingerprint(model), model(ids), ModularOptimizationManager()
    asked = {"tensor_compression": {"head": True}}
    manager.apply_optimizations(model, ["tensor_compression"], parameters=asked)
    assert is_one_table(model)
    assert 0 < (model(ids) - logits).abs().max() < 0.05 * logits.abs().max()
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_a_head_of_its_own_is_compressed_as_ever() -> None:
    case = applied("llama", head=True)
    embedding, head = ends(case.model)
    assert type(embedding) is nn.Embedding
    assert isinstance(head, CompressedLinear)
    assert head.table_of is None
    assert "tied" not in case.manager.get_receipts(case.model)[0].decision


# ---------------------------------------------------------------- beside other optimizations


@pytest.mark.parametrize("first_out", [0, 1])
def test_fused_steps_decode_with_the_table_and_come_off_in_any_order(first_out: int) -> None:
    case, alone = Case("qwen3", torch.bfloat16), Case("qwen3", torch.bfloat16)
    pair, how = ("tensor_compression", "kernel_fusion"), {"parameters": {"tensor_compression": {"head": True}}}
    assert case.apply(*pair, **how)
    assert is_one_table(case.model)
    engine = engine_of(case.model)
    assert engine is not None
    twin = copy.deepcopy(case.model)
    tokens = tiny.generate(case.model, "qwen3", new_tokens=12)
    assert engine.counts.calls == 1
    assert engine.counts.left == {}
    assert torch.equal(tiny.generate(twin, "qwen3", new_tokens=12), tokens)
    first, second = pair[first_out], pair[1 - first_out]
    case.manager.remove_optimizations(case.model, [first])
    assert alone.apply(second, **(how if second == pair[0] else {}))
    assert torch.equal(tiny.logits(case.model, "qwen3"), tiny.logits(alone.model, "qwen3"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("order", [0, 1])
def test_a_trimmed_vocabulary_keeps_its_ends_and_says_so(order: int) -> None:
    case = Case("qwen3")
    asked = {
        "tensor_compression": {"head": True, "kv_cache": "none"},
        "model_surgery": {"edits": ["vocabulary"], "keep_ids": list(range(100))},
    }
    for name in (list(asked), list(asked)[::-1])[order]:
        case.manager.apply_optimizations(case.model, [name], parameters={name: asked[name]})
    receipts = {receipt.name: receipt for receipt in case.manager.get_receipts(case.model)}
    assert list(receipts) == ["model_surgery", "tensor_compression"]
    skips = {site.path: site.skip for site in receipts["tensor_compression"].sites}
    assert skips["lm_head"] == "TrimmedHead has no compressed form"
    assert not torch.isfinite(case.model(torch.tensor([[1, 2]])).logits[..., 100:]).any()
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_an_export_of_one_table_is_refused_with_the_way_out(tmp_path: Path) -> None:
    case = applied("qwen3", head=True, kv_cache="none")
    with pytest.raises(ArtifactError, match=r"model\.embed_tokens .*head=false"):
        export(case.model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [
    {"format": "int4", "group_size": 32, "calibration": "gptq"}, {"calibration": "awq"}, {"compression_ratio": 0.6},
], ids=["gptq", "awq", "mixed"])  # fmt: skip
def test_text_judges_the_other_layers_beside_the_table(asked: dict[str, Any]) -> None:
    case = applied("qwen3", head=True, text=TEXT, kv_cache="none", **asked)
    assert is_one_table(case.model)
    plain = applied("qwen3", head=True, kv_cache="none", targets=["head"])
    assert torch.equal(ends(case.model)[0].weight_int8, ends(plain.model)[0].weight_int8)
    decision = case.manager.get_receipts(case.model)[0].decision
    coverage = decision.get("mixture", decision)["coverage"]
    assert coverage["roles"]["embedding"]["parameters"] == 128 * 64
    beside = applied("qwen3", text=TEXT, kv_cache="none", **asked)
    assert held_out(decision) > held_out(beside.manager.get_receipts(beside.model)[0].decision)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def held_out(decision: dict[str, Any]) -> float:
    """What all layers in the finest form that was judged lose on the held-out text."""
    if "mixture" in decision:
        return float(decision["mixture"]["held_out"]["int8"]["divergence"])
    return float(decision["rounding"]["held_out_divergence"]["nearest"])


def test_a_model_is_loaded_with_its_table(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "model", "qwen3")
    asked = {"tensor_compression": {"head": True}}
    loaded = inference_pio.load_pretrained(tmp_path / "model", optimizations=["tensor_compression"], parameters=asked)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ModularOptimizationManager().apply_optimizations(opened, ["tensor_compression"], parameters=asked)
    assert is_one_table(loaded)
    assert torch.equal(tiny.logits(loaded, "qwen3"), tiny.logits(opened, "qwen3"))


def test_layers_stream_beside_the_table(tmp_path: Path) -> None:
    asked = {"tensor_compression": {"head": True, "kv_cache": "none"}, "disk_offloading": {"host_budget": "70%"}}
    case, alone = Case("qwen3"), applied("qwen3", head=True, kv_cache="none")
    case.manager.apply_optimizations(case.model, list(asked), parameters=asked)
    assert is_one_table(case.model)
    assert torch.equal(tiny.logits(case.model, "qwen3"), tiny.logits(alone.model, "qwen3"))
    case.manager.remove_optimizations(case.model, ["tensor_compression"])
    assert torch.equal(tiny.logits(case.model, "qwen3"), case.logits)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["int8", "fp8"])
def test_recorded_steps_look_up_and_multiply_the_table_on_a_gpu(head: str) -> None:
    """The library's loop computes on the same codes; our steps may differ from it by rounding alone."""
    model = reference_models.load("qwen3").cuda()
    plain, manager = fingerprint(model), ModularOptimizationManager()
    asked: dict[str, Any] = {"tensor_compression": {"head": head, "kv_cache": "none"}}
    ids = reference_models.draw(0, windows=1)[:, :128].cuda()
    given: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "output_logits": True}

    def said() -> Any:
        return model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **given)

    manager.apply_optimizations(model, ["tensor_compression"], parameters=asked)
    expected = said()
    names = ["tensor_compression", "flash_attention", "kernel_fusion"]
    manager.apply_optimizations(model, names, parameters={**asked, "kernel_fusion": {"level": "graph"}})
    assert is_one_table(model)
    for _ in range(2):
        found = said()
        assert torch.equal(found.sequences[:, :130], expected.sequences[:, :130])
        for step in (0, 1):
            limit = 0.04 * expected.logits[step].float().abs().max().item()
            torch.testing.assert_close(found.logits[step].float(), expected.logits[step].float(), rtol=0, atol=limit)
    engine = engine_of(model)
    assert engine is not None
    assert (engine.counts.calls, engine.counts.left) == (2, {})
    manager.remove_optimizations(model)
    assert plain.differences(fingerprint(model)) == []
