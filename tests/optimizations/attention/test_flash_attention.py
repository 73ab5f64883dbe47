"""flash_attention: exact, each phase on what a table names and a check confirms, never the plain one by accident."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import StaticCache

from inference_pio.anatomy import exact_attention as room
from inference_pio.anatomy.walk import attention_modules
from inference_pio.errors import InvalidSetting, NoEffect, RefusedOnOptimized
from inference_pio.kernels import attention_serving
from inference_pio.kernels.attention import KERNELS
from inference_pio.kernels.attention_backends import lacks, run
from inference_pio.kernels.attention_check import why_it_fails
from inference_pio.kernels.attention_choice import FUSED, WHOLE, Phase
from tests import tiny
from tests.sweep import Case

HF = tiny.HF_NAMES
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """The phase of every call of an attention kernel."""
    met: list[Phase] = []

    def watched(backend: str, phase: Phase, *tensors: torch.Tensor, **how: Any) -> torch.Tensor:
        met.append(phase)
        return run(backend, phase, *tensors, **how)

    monkeypatch.setattr(room, "run", watched)
    return met


@pytest.fixture
def found_out_anew() -> Iterator[None]:
    why_it_fails.cache_clear()
    yield
    why_it_fails.cache_clear()


def _order(case: Case, **parameters: Any) -> None:
    case.manager.apply_optimizations(case.model, ["flash_attention"], parameters={"flash_attention": parameters})


@pytest.mark.parametrize("name", HF)
@pytest.mark.parametrize("loaded_with", ["eager", "sdpa"])
def test_logits_are_those_of_the_library_up_to_rounding(name: str, loaded_with: str) -> None:
    case = Case(name)
    case.model.set_attn_implementation(loaded_with)
    expected = tiny.logits(case.model, name)
    case.manager.apply_optimizations(case.model, ["flash_attention"])
    torch.testing.assert_close(tiny.logits(case.model, name), expected, **CLOSE)
    case.manager.remove_optimizations(case.model)
    assert {module.config._attn_implementation for _, module, _ in attention_modules(case.model)} == {loaded_with}


@pytest.mark.parametrize("name", HF)
def test_names_hold_no_word_that_the_library_reads_but_the_one_for_packed_pictures(name: str) -> None:
    case = Case(name)
    case.apply("flash_attention")
    for _, module, role in attention_modules(case.model):
        served = module.config._attn_implementation
        assert served.startswith("inference_pio_")
        assert "sdpa" not in served
        assert "flash_attention" not in served
        assert ("flash" in served) is (role == "vision")
    assert "flash" not in case.model.config._attn_implementation


@pytest.mark.parametrize("name", HF)
def test_padded_batches_are_masked(name: str, phases: list[Phase]) -> None:
    case = Case(name)
    given = tiny.inputs(name, case.model)
    given["attention_mask"][0, :3] = 0
    expected = case.model(**given).logits[:, -1]
    case.apply("flash_attention")
    torch.testing.assert_close(case.model(**given).logits[:, -1], expected, **CLOSE)
    assert set(phases) == {Phase.PADDED_PREFILL}


def _expanded(name: str, phases: list[Phase], prefill: Phase, later: Phase) -> bool:
    """Whether these phases reached a backend; where a latent cache is attended as it is, few new tokens do not."""
    return set(phases) <= {prefill} if name == "glm4_moe_lite" else set(phases) == {prefill, later}


@pytest.mark.parametrize("name", HF)
def test_chunks_see_what_came_before(name: str, phases: list[Phase]) -> None:
    case = Case(name)
    tokens = tiny.inputs(name, case.model)["input_ids"]
    with torch.no_grad():
        expected = case.model(input_ids=tokens).logits[:, 5:]
        case.apply("flash_attention")
        cache = case.model(input_ids=tokens[:, :5], use_cache=True).past_key_values
        got = case.model(input_ids=tokens[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(got, expected, **CLOSE)
    assert _expanded(name, phases, Phase.PREFILL, Phase.CHUNK)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", [name for name in HF if name != "gpt2"])
def test_static_caches_are_read_to_their_true_length(name: str, padded: bool, phases: list[Phase]) -> None:
    case = Case(name)
    given = tiny.inputs(name, case.model)
    given["attention_mask"][0, : 3 * padded] = 0
    how = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static", "disable_compile": True}
    expected = case.model.generate(**given, **how)
    case.apply("flash_attention")
    assert torch.equal(case.model.generate(**given, **how), expected)
    assert _expanded(name, phases, Phase.PADDED_PREFILL if padded else Phase.PREFILL, Phase.STATIC_DECODE)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", HF)
def test_generating_goes_through_prefill_and_decode(name: str, padded: bool, phases: list[Phase]) -> None:
    case = Case(name)
    given = tiny.inputs(name, case.model)
    given["attention_mask"][0, : 3 * padded] = 0
    how = {"max_new_tokens": 4, "do_sample": False}
    expected = case.model.generate(**given, **how)
    case.apply("flash_attention")
    assert torch.equal(case.model.generate(**given, **how), expected)
    met = (Phase.PADDED_PREFILL, Phase.PADDED_DECODE) if padded else (Phase.PREFILL, Phase.DECODE)
    assert _expanded(name, phases, *met)


def test_a_static_chunk_is_cut_to_what_is_there(phases: list[Phase]) -> None:
    case = Case("qwen3")
    tokens = tiny.inputs("qwen3", case.model)["input_ids"]
    with torch.no_grad():
        expected = case.model(input_ids=tokens).logits[:, 5:]
        case.apply("flash_attention")
        cache = StaticCache(config=case.model.config, max_cache_len=32)
        case.model(input_ids=tokens[:, :5], past_key_values=cache)
        got = case.model(input_ids=tokens[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(got, expected, **CLOSE)
    assert set(phases) == {Phase.PREFILL, Phase.CHUNK}


def _pictures(case: Case, *grids: tuple[int, int]) -> dict[str, torch.Tensor]:
    """One row of text with pictures of so many patches, each followed by a word."""
    generator = torch.Generator().manual_seed(1)
    tokens: list[int] = []
    for high, wide in grids:
        tokens += [tiny.VISION_START_TOKEN, *[tiny.IMAGE_TOKEN] * (high * wide // 4), tiny.VISION_END_TOKEN, 7]
    ids = torch.tensor([tokens])
    patches = sum(high * wide for high, wide in grids)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == tiny.IMAGE_TOKEN).int(),
        "pixel_values": torch.randn(patches, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([(1, high, wide) for high, wide in grids]),
    }


@pytest.mark.parametrize(
    ("grids", "sizes"), [([(4, 4)] * 3, 1), ([(4, 4), (8, 4), (4, 4), (4, 6)], 3), ([(8, 4)], 1), ([(2, 8), (4, 4)], 1)]
)
def test_pictures_are_served_together_as_the_library_serves_them_one_by_one(
    grids: list[tuple[int, int]], sizes: int, phases: list[Phase], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("qwen3_vl")
    given = _pictures(case, *grids)
    with torch.no_grad():
        expected = case.model(**given).logits
        case.apply("flash_attention")
        read: list[Any] = []
        diff = torch.Tensor.diff
        monkeypatch.setattr(torch.Tensor, "diff", lambda tensor, *how: read.append(1) or diff(tensor, *how))
        got = case.model(**given).logits
    torch.testing.assert_close(got, expected, **CLOSE)
    layers = case.model.config.vision_config.depth
    assert phases.count(Phase.VISION) == layers * sizes
    assert len(read) == 1


def test_vision_attention_is_served_too() -> None:
    case = Case("qwen3_vl")
    case.apply("flash_attention")
    receipt = case.manager.get_receipts(case.model)[0]
    assert {site.role for site in receipt.acted} == {"attention", "vision"}
    assert [choice["vision"] for choice in receipt.decision["choices"]] == [True, False]


def test_the_receipt_names_the_backend_and_answers_the_preference() -> None:
    case = Case("llama")
    _order(case, use_triton=True)
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.backend == "fused"
    assert any("use_triton is a preference" in note for note in receipt.notes)
    assert any(note.startswith("triton is passed over") and "NVIDIA GPU" in note for note in receipt.notes)


def test_plain_kernels_are_said_where_torch_has_no_fused_one() -> None:
    case = Case("glm4_moe_lite")
    case.apply("flash_attention")
    assert any("its plain kernel computes these" in note for note in case.manager.get_receipts(case.model)[0].notes)


@pytest.mark.parametrize("backend", ["cudnn", "flash", "efficient", "triton"])
def test_an_order_that_this_device_cannot_keep_raises_and_touches_nothing(backend: str) -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match="NVIDIA GPU"):
        _order(case, backend=backend)
    case.check_untouched()


def test_flex_is_refused_where_nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    case = Case("llama")
    with pytest.raises(InvalidSetting, match=r"backend='flex' cannot serve here.*no-such-compiler"):
        _order(case, backend="flex")
    case.check_untouched()


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what torch itself loads to compile
def test_flex_serves_causal_prefill_by_order() -> None:
    case = Case("llama")
    if (reason := lacks("flex", Phase.PREFILL, None, torch.float32, torch.device("cpu"))) is not None:  # type: ignore[arg-type]
        pytest.skip(reason)
    with torch.no_grad():
        _order(case, backend="flex")
        assert "prefill flex" in str(case.manager.get_receipts(case.model)[0].backend)
        torch.testing.assert_close(tiny.logits(case.model, "llama"), case.logits, **CLOSE)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_preference_and_an_order_contradict_each_other() -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match="contradict"):
        _order(case, use_triton=True, backend="flash")
    with pytest.raises(InvalidSetting, match="NVIDIA GPU"):  # these two agree: what fails is the order
        _order(case, use_triton=True, backend="triton")


def test_a_model_that_runs_the_flash_attention_package_is_left_alone() -> None:
    case = Case("llama")
    case.model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(NoEffect, match="already runs flash_attention_2"):
        case.manager.apply_optimizations(case.model, ["flash_attention"])


@pytest.mark.parametrize("name", HF)
def test_attention_weights_are_refused_and_never_given_by_another_kernel_in_silence(name: str) -> None:
    case = Case(name)
    case.apply("flash_attention")
    with pytest.raises(RefusedOnOptimized, match="output_attentions=True"), torch.no_grad():
        case.model(**tiny.inputs(name, case.model), output_attentions=True)


def test_a_configuration_that_asks_for_attention_weights_is_told_in_the_plan() -> None:
    case = Case("llama")
    case.model.set_attn_implementation("eager")
    case.model.config.output_attentions = True
    with pytest.raises(NoEffect, match="output_attentions"):
        case.manager.apply_optimizations(case.model, ["flash_attention"])


def test_two_models_with_different_choices_do_not_meet() -> None:
    one, other = Case("llama"), Case("llama")
    one.apply("flash_attention")
    assert torch.equal(tiny.logits(other.model, "llama"), other.logits)
    other.check_untouched()


@pytest.mark.usefixtures("found_out_anew")
def test_a_kernel_that_fails_its_check_stops_the_step_before_the_first_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    right = KERNELS[FUSED]
    case = Case("llama")
    monkeypatch.setitem(KERNELS, FUSED, lambda *given, **how: right(*given, **how) * 1.1)
    with pytest.raises(InvalidSetting, match="off by"):
        case.manager.apply_optimizations(case.model, ["flash_attention"])
    monkeypatch.setitem(KERNELS, FUSED, right)
    case.check_untouched()


@pytest.fixture
def like_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's choice for an H100, each of its kernels played by torch's own choice on this CPU."""
    monkeypatch.setattr(attention_serving, "capability_of", lambda device: 90)
    monkeypatch.setattr(attention_serving, "lacks", lambda backend, phase, *_: _hopper_lacks(backend, phase))
    monkeypatch.setattr(attention_serving, "why_it_fails", lambda *_: None)
    monkeypatch.setattr(room, "run", lambda backend, *given, **how: run(FUSED, *given, **how))


def _hopper_lacks(backend: str, phase: Phase) -> str | None:
    takes = {*WHOLE, Phase.CHUNK, Phase.DECODE, Phase.VISION}
    if backend == "triton" and phase is Phase.MASKED_DECODE:
        return "it decodes with starts and lengths, and no other mask"
    return "it takes no mask" if backend == "flash" and phase not in takes else None


@pytest.mark.usefixtures("like_hopper")
def test_the_receipt_says_which_backend_serves_which_phase() -> None:
    case = Case("qwen3_vl")
    case.apply("flash_attention")
    receipt = case.manager.get_receipts(case.model)[0]
    said = str(receipt.backend)
    assert said.startswith(
        "vision flash; prefill cudnn; padded prefill triton; chunk triton; decode flash, triton from"
    )
    assert any(note.startswith("triton serves inference") for note in receipt.notes)
    names = {module.config._attn_implementation for _, module, _ in attention_modules(case.model)}
    assert len(names) == 2
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.usefixtures("like_hopper")
@pytest.mark.parametrize(
    ("fault", "parameters", "expected"),
    [
        ({"cudnn"}, {}, "prefill flash"),
        ({"cudnn", "flash"}, {}, "prefill triton"),
        (set(), {"backend": "flash"}, "prefill flash"),
        (set(), {"use_triton": True}, "prefill triton"),
    ],
)
def test_a_failed_candidate_is_dropped_with_its_reason_and_the_next_best_serves(
    fault: set[str], parameters: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        attention_serving, "why_it_fails", lambda backend, *_: "it is off by 9" if backend in fault else None
    )
    case = Case("llama")
    _order(case, **parameters)
    receipt = case.manager.get_receipts(case.model)[0]
    assert str(receipt.backend).startswith(expected)
    for backend in fault:
        assert any(note.startswith(f"{backend} is passed over at prefill") for note in receipt.notes)
    assert receipt.decision["choices"][0]["serves"]["prefill"][0][1] == expected.split()[1]


@pytest.mark.usefixtures("like_hopper")
@pytest.mark.parametrize("broken", [Phase.PREFILL, Phase.MASKED])
def test_an_order_that_fails_its_check_in_one_phase_raises(broken: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        attention_serving,
        "why_it_fails",
        lambda backend, phase, *_: "it is off by 9" if (backend, phase) == ("cudnn", broken) else None,
    )
    case = Case("llama")
    at = "prefill, captured prefill" if broken is Phase.PREFILL else broken  # one computes as the other does
    with pytest.raises(InvalidSetting, match=rf"backend='cudnn' cannot serve at {at} here: it is off by 9"):
        _order(case, backend="cudnn")
    case.check_untouched()


GPU_BACKENDS = ["auto", "flash", "efficient", "cudnn", "triton", "fused"]


def _wide(dtype: torch.dtype) -> Case:
    """A tiny model with heads of a width that every kernel knows, 8 over 4, on the GPU."""
    case = Case("qwen3", dtype)
    config = tiny.CONFIGS["qwen3"]()
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 64
    case.model = tiny.build("qwen3", dtype, config=config).cuda()
    return case


def test_latent_attention_decodes_absorbed_and_the_receipt_says_so() -> None:
    case = Case("glm4_moe_lite")
    ids = tiny.inputs("glm4_moe_lite", case.model)["input_ids"]
    with torch.no_grad():
        wanted = case.model(ids).logits[:, -1]
        case.apply("flash_attention")
        receipt = case.manager.get_receipts(case.model)[0]
        assert all(site.claims == {"attention.mla_decode"} for site in receipt.acted)
        assert any("decodes absorbed in 2 layers" in note for note in receipt.notes)
        cache = case.model(ids[:, :-1]).past_key_values
        expanding = [module.kv_b_proj for _, module, _ in attention_modules(case.model)]
        seen: list[int] = []
        handles = [layer.register_forward_hook(lambda *given: seen.append(1)) for layer in expanding[:1]]
        got = case.model(ids[:, -1:], past_key_values=cache).logits[:, -1]
        assert seen == [1]  # a hook put there later is still met
        handles[0].remove()
        again = case.model(ids[:, :-1]).past_key_values
        direct = case.model(ids[:, -1:], past_key_values=again).logits[:, -1]
        assert seen == [1]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(direct, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(got, direct)  # two orders of arithmetic
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_latent_attention_that_cannot_be_absorbed_is_served_as_before_and_told() -> None:
    case = Case("glm4_moe_lite")
    handle = case.model.model.layers[1].self_attn.kv_b_proj.register_forward_hook(lambda *given: None)
    case.apply("flash_attention")
    receipt = case.manager.get_receipts(case.model)[0]
    assert len(receipt.acted) == 2
    assert any("decodes absorbed in 1 layers" in note for note in receipt.notes)
    assert any("expands its cache each step in 1 layers: the layer that expands" in note for note in receipt.notes)
    assert torch.allclose(tiny.logits(case.model, "glm4_moe_lite"), case.logits, atol=1e-4)
    case.manager.remove_optimizations(case.model)
    handle.remove()
    case.check_untouched()


def test_latent_attention_is_absorbed_over_compressed_weights_too() -> None:
    case = Case("glm4_moe_lite")
    assert case.apply("tensor_compression", "flash_attention")
    notes = case.manager.get_receipts(case.model)[1].notes
    assert any("decodes absorbed in 2 layers" in note for note in notes)
    case.manager.remove_optimizations(case.model, ["tensor_compression"])
    assert any("decodes absorbed" in note for note in case.manager.get_receipts(case.model)[0].notes)
    assert torch.allclose(tiny.logits(case.model, "glm4_moe_lite"), case.logits, atol=1e-4)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_gpu_backends_give_the_library_logits(backend: str) -> None:
    case = _wide(torch.bfloat16)
    expected = tiny.logits(case.model, "qwen3")
    _order(case, backend=backend)
    torch.testing.assert_close(tiny.logits(case.model, "qwen3"), expected, rtol=5e-2, atol=5e-2)
    case.manager.remove_optimizations(case.model)
    assert torch.equal(tiny.logits(case.model, "qwen3"), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_gpu_every_phase_gives_the_logits_of_float32(backend: str, padded: bool, cache: str) -> None:
    """Prompt, chunk and decode steps, over tokens that are given: one wrong key would show, a near tie would not."""
    case = _wide(torch.bfloat16)
    exact = _wide(torch.float32).model
    exact.load_state_dict(case.model.state_dict())
    tokens = torch.randint(1, 120, (2, 41), generator=torch.Generator().manual_seed(3)).cuda()
    mask = torch.ones_like(tokens)
    mask[0, : 5 * padded] = 0
    expected = _stepwise(exact, tokens, mask, cache)
    _order(case, backend=backend)
    got = _stepwise(case.model, tokens, mask, cache)
    visible = mask.bool()
    torch.testing.assert_close(got[visible].float(), expected[visible], rtol=1e-1, atol=1e-1)


@torch.no_grad()
def _stepwise(model: Any, tokens: torch.Tensor, mask: torch.Tensor, cache: str) -> torch.Tensor:
    """Logits of a prompt of 29 tokens, a chunk of 9 and three decode steps."""
    kept = StaticCache(config=model.config, max_cache_len=64) if cache == "static" else None
    logits, begin = [], 0
    for end in (29, 38, 39, 40, 41):
        out = model(input_ids=tokens[:, begin:end], attention_mask=mask[:, :end], past_key_values=kept, use_cache=True)
        kept, begin = out.past_key_values, end
        logits.append(out.logits)
    return torch.cat(logits, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ["auto", "efficient", "fused"])
def test_gpu_greedy_tokens_in_float32_are_the_librarys(backend: str, padded: bool) -> None:
    case = _wide(torch.float32)
    given = tiny.inputs("qwen3", case.model)
    given["attention_mask"][0, : 3 * padded] = 0
    how = {"max_new_tokens": 12, "do_sample": False}
    expected = case.model.generate(**given, **how)
    _order(case, backend=backend)
    assert torch.equal(case.model.generate(**given, **how), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash", "cudnn", "triton"])
def test_gpu_orders_that_have_no_float32_kernel_raise(backend: str) -> None:
    with pytest.raises(InvalidSetting, match="float32"):
        _order(_wide(torch.float32), backend=backend)


@pytest.mark.gpu
def test_gpu_pictures_of_many_sizes_are_served_together() -> None:
    case = Case("qwen3_vl", torch.bfloat16)
    model = case.model.cuda()
    given = {key: value.cuda() for key, value in _pictures(case, (4, 4), (8, 4), (4, 4), (4, 6)).items()}
    given["pixel_values"] = given["pixel_values"].bfloat16()
    with torch.no_grad():
        expected = model(**given).logits
        case.manager.apply_optimizations(model, ["flash_attention"])
        got = model(**given).logits
    assert "vision flash" in str(case.manager.get_receipts(model)[0].backend)
    torch.testing.assert_close(got, expected, rtol=5e-2, atol=5e-2)
