"""Heads that choose pages do so in recorded steps as in the library's loop, once a run; audits stand between runs."""

from __future__ import annotations

import copy
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_pio.anatomy.decoder_attention import GroupedAttention
from inference_pio.anatomy.pattern_counts import PatternCounts
from inference_pio.cache.store import Kind, Store
from inference_pio.compat import ATTENTION_KEY
from inference_pio.decoding import call
from inference_pio.decoding.page_choices import LEARNING, WIDE, PageChoices, page_choices
from inference_pio.decoding.page_lists import ENGINE
from inference_pio.decoding.recordable import RecordableOperations
from inference_pio.decoding.runner import WARM_UPS, EagerRunner
from inference_pio.decoding.takeover import engine_of
from inference_pio.kernels.page_choice import naive_choose_pages
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary, naive_page_summary
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.compute import kernel_fusion
from inference_pio.sparsity.adaptive_heads import AdaptiveHeads, AdaptiveSettings
from inference_pio.sparsity.audited_decode import FIRST, AuditedDecode, DecodeSettings
from tests import tiny

CPU = torch.device("cpu")
NAME = "adaptive_sparse_attention"


def adapted(monkeypatch: pytest.MonkeyPatch, *, fuse: bool = True, **asked: Any) -> tuple[Any, Any]:
    """A model whose heads choose, and steps that never ask the host, as on a GPU."""
    monkeypatch.setattr(kernel_fusion, "choose_operations", lambda *given, **how: RecordableOperations())
    model, manager = tiny.build("llama"), ModularOptimizationManager()
    given = {NAME: {"dense_below": 0, "dense_above": 1.0, **asked}, "kernel_fusion": {"level": "graph", "exact": True}}
    names = [NAME, "kernel_fusion"] if fuse else [NAME]
    manager.apply_optimizations(model, names, parameters={name: given[name] for name in names})
    return model, manager


def said(model: Any, new: int = 50, prompt: int = 440, padded: int = 0, **how: Any) -> Tensor:
    tokens = torch.randint(1, 120, (2, prompt), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    mask[0, :padded] = 0
    asked = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, **how}
    return torch.stack(model.generate(tokens, attention_mask=mask, output_logits=True, **asked).logits)


def counted(manager: Any, model: Any) -> dict[str, Any]:
    found: dict[str, Any] = manager.get_optimization_status(model)["optimizations"][NAME]["counted"]
    return found


@pytest.mark.parametrize("padded", [0, 70])
def test_steps_choose_what_the_librarys_loop_chooses(monkeypatch: pytest.MonkeyPatch, padded: int) -> None:
    asked: dict[str, Any] = {"budget": 256, "page_scorer": "bounds"}
    (ours, manager), (theirs, _) = adapted(monkeypatch, **asked), adapted(monkeypatch, fuse=False, **asked)
    expected, engine = said(theirs, padded=padded), engine_of(ours)
    torch.testing.assert_close(said(ours, padded=padded), expected, rtol=1e-4, atol=1e-5)
    assert engine is not None
    assert (engine.counts.calls, engine.counts.left) == (1, {})
    dense = said(tiny.build("llama"), padded=padded)
    assert not torch.allclose(dense[FIRST + 1 :], expected[FIRST + 1 :], rtol=1e-4, atol=1e-5)
    found = counted(manager, ours)
    assert found["dense_calls"][LEARNING] == 3 * FIRST
    assert found["backends"][ENGINE] == 3 * (49 - FIRST)
    assert found["density"] < 0.6
    assert found["audits"]


def test_without_a_budget_heads_read_what_their_audits_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours, _), (theirs, _) = adapted(monkeypatch), adapted(monkeypatch, fuse=False)
    torch.testing.assert_close(said(ours), said(theirs), rtol=1e-4, atol=1e-5)


def test_short_sequences_attend_to_all_until_they_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"budget": 256, "dense_below": 460}
    (ours, manager), (theirs, _) = adapted(monkeypatch, **asked), adapted(monkeypatch, fuse=False, **asked)
    torch.testing.assert_close(said(ours), said(theirs), rtol=1e-4, atol=1e-5)
    found = counted(manager, ours)
    assert found["dense_calls"]["fewer than 460 tokens"] >= 3 * 19
    assert found["backends"][ENGINE] == 3 * (49 - 19 - FIRST)


def test_room_that_grows_keeps_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_pio.decoding.engine.FIRST_ROOM", 1)
    asked: dict[str, Any] = {"budget": 256}
    (ours, manager), (theirs, _) = adapted(monkeypatch, **asked), adapted(monkeypatch, fuse=False, **asked)
    torch.testing.assert_close(said(ours, prompt=240), said(theirs, prompt=240), rtol=1e-4, atol=1e-5)
    engine = engine_of(ours)
    assert engine is not None
    assert counted(manager, ours)["backends"][ENGINE] == 3 * (49 - FIRST)


def test_a_run_reads_what_its_first_step_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can be told apart is chosen by the first of four tokens: where nothing is left out, nothing changes."""
    monkeypatch.setattr(call.Call, "ahead", property(lambda self: 1 if self.recipe is None else 4))
    few, _ = adapted(monkeypatch, budget=256)
    all_of_it, manager = adapted(monkeypatch, budget=4096)
    tokens = torch.randint(1, 120, (1, 440), generator=torch.Generator().manual_seed(5))
    how: dict[str, Any] = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(all_of_it.generate(tokens, **how), tiny.build("llama").generate(tokens, **how))
    assert counted(manager, all_of_it)["dense_calls"][LEARNING] == 3 * 4 * FIRST
    assert counted(manager, all_of_it)["density"] > 0.9
    few.generate(tokens, **how)
    engine = engine_of(few)
    assert engine is not None
    assert engine.counts.calls == 1


def test_attention_that_is_spread_wide_is_dense_up_to_the_next_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, manager = adapted(monkeypatch, coverage=0.9999, dense_above=0.5, audit_rate=0.1)
    said(ours)
    found = counted(manager, ours)
    # steps 8 to 48, an audit before every tenth (the last has two behind it): that it does not pay is seen two steps on
    assert found["dense_calls"][LEARNING] == 3 * FIRST
    assert found["backends"][ENGINE] == 3 * (4 * 3 + 2)
    assert found["dense_calls"][WIDE] == 3 * (41 - 14)
    assert found["density"] > 0.5


def test_certified_heads_attend_to_every_token_at_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, manager = adapted(monkeypatch, mode="certified")
    said(ours, new=5)
    assert counted(manager, ours)["dense_calls"]["recorded steps, which attend to every token"] == 3 * 4


def warmed_up(steps: Any, kept: Any, device: Any) -> EagerRunner:
    """What recording does on a GPU: some runs first, after which all is put back."""
    before = [tensor.clone() for tensor in kept]
    for _ in range(WARM_UPS):
        steps()
    for tensor, was in zip(kept, before, strict=True):
        tensor.copy_(was)
    return EagerRunner(steps)


@pytest.mark.parametrize("dense_below", [476, 480, 484])
def test_steps_that_are_recorded_in_mid_call_have_room(monkeypatch: pytest.MonkeyPatch, dense_below: int) -> None:
    """The last run before the room's end is the first that chooses."""
    monkeypatch.setattr("inference_pio.decoding.engine.FIRST_ROOM", 1)
    monkeypatch.setattr(call.Call, "ahead", property(lambda self: 4))
    monkeypatch.setattr(call, "record", warmed_up)
    ours, _ = adapted(monkeypatch, budget=256, dense_below=dense_below)
    tokens = torch.randint(1, 120, (1, 240), generator=torch.Generator().manual_seed(5))
    how: dict[str, Any] = {"max_new_tokens": 271, "do_sample": False, "pad_token_id": 0}
    assert ours.generate(tokens, **how).shape == (1, 511)
    engine = engine_of(ours)
    assert engine is not None
    assert (engine.counts.calls, engine.counts.left) == (1, {})


def test_rooms_of_other_numbers_of_rows_and_copies_keep_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"budget": 256, "page_scorer": "bounds"}
    ours, _ = adapted(monkeypatch, **asked)
    tokens = torch.randint(1, 120, (2, 440), generator=torch.Generator().manual_seed(7))
    how: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    first = ours.generate(tokens[:1], **how)
    both = ours.generate(tokens, **how)
    assert torch.equal(ours.generate(tokens[:1], **how), first)
    assert torch.equal(copy.deepcopy(ours).generate(tokens, **how), both)
    engine = engine_of(ours)
    assert engine is not None
    held = [weakref.ref(bucket.choices) for bucket in engine._buckets.values()]
    assert len(held) == 2
    engine.close()
    gc.collect()
    assert [one() for one in held] == [None, None]


def test_a_sequence_that_ends_within_a_run_tells_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call.Call, "ahead", property(lambda self: 4))
    ours, manager = adapted(monkeypatch, budget=256)
    tokens = torch.randint(1, 120, (1, 440), generator=torch.Generator().manual_seed(5))
    ours.generate(tokens, max_new_tokens=4 * FIRST + 7, do_sample=False, pad_token_id=0)
    found = counted(manager, ours)
    assert found["dense_calls"][LEARNING] == 3 * 4 * FIRST
    assert found["backends"][ENGINE] == 3 * 6


HEADS, KEY_HEADS, WIDTH = 4, 2, 32


def alone(budget: int | None, capacity: int = 1024) -> tuple[PageChoices, Any, Store, AdaptiveHeads]:
    """One attention that chooses over a store."""
    heads = AdaptiveHeads(
        AdaptiveSettings(decode=DecodeSettings(budget=budget, scorer="both", dense_above=1.0), dense_below=0)
    )
    store = Store(Kind(1, KEY_HEADS, WIDTH, KEY_HEADS, WIDTH, torch.float32, CPU), capacity)
    attention: Any = SimpleNamespace(
        module=SimpleNamespace(config=None), heads=HEADS, key_heads=KEY_HEADS, head_dim=WIDTH, scale=WIDTH**-0.5
    )
    chooser = heads.page_chooser(HEADS, KEY_HEADS, CPU)
    assert chooser is not None
    choices = PageChoices([(attention, heads, chooser, store)], capacity)
    return choices, attention, store, heads


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("budget", [None, 256])
def test_lists_are_those_of_a_summary_that_is_made_anew(steps: int, budget: int | None) -> None:
    choices, attention, store, heads = alone(budget)
    chance = torch.Generator().manual_seed(steps)
    keys = torch.randn(1, 1024, KEY_HEADS, WIDTH, generator=chance)
    store.keys[:, :500].copy_(keys[:, :500])
    slots: Any = SimpleNamespace(lengths=torch.zeros(1, dtype=torch.int32))
    choices.begin()
    held, chooser = 500, heads.decode
    assert chooser is not None
    for run in range(FIRST + 24):
        slots.lengths.fill_(held)
        choices.before_run(held, steps, slots.lengths, None)
        assert choices.sparse is (run >= FIRST)
        for step in range(steps):
            store.keys[:, held].copy_(keys[:, held])
            held += 1
            slots.lengths.fill_(held)
            query = torch.randn(1, HEADS, WIDTH, generator=chance)
            found = choices.pages(attention, query, slots, None, step, steps)
            if step == 0:
                expected = wanted(query, keys, held, chooser, steps)
            if not choices.sparse:
                assert found is None
                continue
            assert found is not None
            assert torch.equal(found.kept(16), expected.kept(16))
            assert bool(found.kept(16)[..., (held - 1) // 64].all())  # the page of each token of the run is read
    choices.tell((FIRST + 24) * steps)
    assert isinstance(heads.counts, PatternCounts)
    assert heads.counts.dense_calls == {LEARNING: FIRST * steps}
    assert heads.counts.backends == {ENGINE: 24 * steps}


def wanted(query: Tensor, keys: Tensor, held: int, chooser: Any, steps: int) -> PageList:
    seen = keys.clone()
    seen[:, held:] = 0
    found = naive_page_summary(seen, held)
    summary = PageSummary(found.minimum, found.maximum, found.mean)
    budget = None if chooser.settings.budget is None else chooser.settings.budget // 64
    return naive_choose_pages(
        query, summary, held, chooser.shares, scorer="both", scale=WIDTH**-0.5, budget=budget, ahead=steps - 1
    )


def test_layers_of_other_shapes_are_audited_by_themselves() -> None:
    _, attention, store, heads = alone(256)
    kind = Kind(1, 1, WIDTH, 1, WIDTH, torch.float32, CPU)
    other = SimpleNamespace(**{**vars(attention), "module": SimpleNamespace(config=None), "key_heads": 1})
    more = AdaptiveHeads(heads.settings, 1)
    members: Any = [
        (attention, heads, heads.page_chooser(HEADS, KEY_HEADS, CPU), store),
        (other, more, more.page_chooser(HEADS, 1, CPU), Store(kind, 1024)),
    ]
    choices = PageChoices(members, 1024)
    assert [len(group.layers) for group in choices.groups] == [1, 1]
    choices.begin()
    slots: Any = SimpleNamespace(lengths=torch.tensor([600], dtype=torch.int32))
    for run in range(FIRST + 2):
        choices.before_run(600 + run, 1, slots.lengths.fill_(600 + run), None)
        slots.lengths += 1
        for part in (attention, other):
            listed = choices.pages(part, torch.ones(1, HEADS, WIDTH), slots, None, 0, 1)
            assert (listed is not None) is (run >= FIRST)
    assert listed is not None
    assert listed.counts.shape == (1, 1)


def test_on_a_gpu_layers_that_no_kernel_serves_attend_to_all() -> None:
    _, attention, store, heads = alone(256)
    name = "mine_over_sdpa"
    attention.module = torch.nn.Module()
    attention.module.config = SimpleNamespace(**{ATTENTION_KEY: name})
    vars(attention.module)["mine"] = heads
    served = GroupedAttention(attention.module, *[torch.nn.Identity()] * 4, None, None, HEADS, KEY_HEADS, WIDTH, 1.0)
    assert page_choices([served], [store], 1024, CPU) is not None
    assert page_choices([served], [store], 1024, torch.device("cuda")) is None


def test_room_that_is_too_short_for_a_choice_is_not_followed() -> None:
    heads = AdaptiveHeads(AdaptiveSettings(dense_below=2048))
    _, attention, store, _ = alone(None)
    choices = PageChoices([(attention, heads, heads.page_chooser(HEADS, KEY_HEADS, CPU), store)], 1024)  # type: ignore[list-item]
    assert not choices.may_choose(choices.capacity)
    slots: Any = SimpleNamespace(lengths=torch.tensor([600], dtype=torch.int32))
    assert choices.pages(attention, torch.ones(1, HEADS, WIDTH), slots, None, 0, 1) is None
    assert float(choices.layers[id(attention.module)].query.abs().max()) == 0


def test_a_cache_of_too_many_pages_is_read_whole() -> None:
    choices, _, _, _ = alone(None)
    choices.grow(1 << 20)
    choices.begin()
    assert not choices.may_choose(1 << 19)
    assert page_choices([], [], 1024, CPU) is None


def wide_model(**asked: Any) -> tuple[Any, Any]:
    """On a GPU, heads that our kernels serve, fused."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, max_position_embeddings=8192)).eval().cuda().bfloat16()
    manager, names = ModularOptimizationManager(), ["kernel_fusion"]
    given: dict[str, Any] = {"kernel_fusion": {"level": "graph"}}
    if asked:
        names, given[NAME] = [NAME, *names], {"dense_below": 0, "page_scorer": "bounds", **asked}
    manager.apply_optimizations(model, names, parameters=given)
    return model, manager


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [0, 70])
def test_gpu_recorded_steps_read_what_their_runs_chose(padded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a model that never ends to learn: its runs are dense by the same kernels, rounding and all."""
    tokens = torch.randint(1, 500, (2, 1500), generator=torch.Generator().manual_seed(2)).cuda()
    mask = torch.ones_like(tokens)
    mask[0, :padded] = 0
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 200, "do_sample": False, "pad_token_id": 0}
    found = {}
    for name in ("dense", "few"):
        model, manager = wide_model(budget=512)
        with monkeypatch.context() as patch:
            if name == "dense":
                patch.setattr(AuditedDecode, "is_learning", True)
            found[name] = model.generate(tokens, **how)
        counts = counted(manager, model)
        if name == "dense":
            assert counts["dense_calls"] == {LEARNING: 2 * 199}
            continue
        assert counts["backends"][ENGINE] == 2 * (199 - 4 * FIRST), counts
        assert counts["dense_calls"][LEARNING] == 2 * 4 * FIRST
        assert counts["density"] < 0.45
        audits = next(iter(counts["audits"].values()))["decode"]
        assert audits["audited_rows"] == 2 * 2 * (FIRST - 1 + 2)
    before = 1500 + 4 * FIRST + 1
    assert torch.equal(found["dense"][:, :before], found["few"][:, :before])
    assert not torch.equal(found["dense"], found["few"])


@pytest.mark.gpu
def test_gpu_lists_are_those_of_a_summary_that_is_made_anew() -> None:
    """With a processor of the caller's steps go one by one: the last query is the one that chose."""
    model, _ = wide_model(budget=512)
    tokens = torch.randint(1, 500, (1, 1500), generator=torch.Generator().manual_seed(3)).cuda()
    model.generate(tokens, max_new_tokens=41, do_sample=False, pad_token_id=0, output_logits=True,
                   return_dict_in_generate=True)  # fmt: skip
    engine = engine_of(model)
    assert engine is not None
    (bucket,) = engine._buckets.values()
    choices, held = bucket.choices, 1500 + 40
    assert choices is not None
    for layer in choices.layers.values():
        summary = naive_page_summary(layer.store.keys[:, :held].float(), held)
        summary = PageSummary(summary.minimum.bfloat16(), summary.maximum.bfloat16(), summary.mean)
        chooser: Any = layer.chooser
        expected = naive_choose_pages(
            layer.query, summary, held, chooser.shares, scorer="bounds", scale=layer.attention.scale, budget=8
        )
        differ = layer.room.lists.kept(32)[..., :25] ^ expected.kept(25)
        assert int(differ.sum(-1).max()) <= 2
