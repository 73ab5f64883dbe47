"""Adaptive sparse attention on trained models, its gates forced open: what is kept, and what that does to answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from inference_pio.kernels.attention_mass import attention_mass
from inference_pio.kernels.block_choice import Ranked, fixed_blocks, seen_blocks
from inference_pio.kernels.certified_attention import certified_attention, dropped_mass
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure.needles import needle_questions
from inference_pio.measure.questions import answers
from inference_pio.sparsity import certified_prefill
from inference_pio.sparsity.audited_prefill import AuditedPrefill, Choice
from inference_pio.sparsity.coverage_control import CoverageControl, CoverageTarget
from tests.quality import reference_models
from tests.quality.reference_models import NAMES
from tests.sweep import turn_of_this_commit

OPEN = {"dense_below": 0, "dense_above": 1.0}
NAME = "adaptive_sparse_attention"
TAKEN = NAMES[turn_of_this_commit() % len(NAMES)]
EVERY = [pytest.param(name, marks=[] if name == TAKEN else pytest.mark.slow) for name in NAMES]
"""One model in every run; the others are left to `make verify`, and the next commit takes the next one."""
DENSER = {"glm4_moe_lite": 1.75}
"""Kept blocks over those that the truth itself would keep, at most (1.4 elsewhere): six of this model's sixteen heads
look at single tokens anywhere, of which the means of blocks say nothing; the audits make them dense."""


def optimized(model: Any, **parameters: Any) -> Any:
    manager = ModularOptimizationManager()
    return manager.apply_optimizations(model, [NAME], parameters={NAME: {**OPEN, **parameters}})


def counted(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = ModularOptimizationManager().get_optimization_status(model)["optimizations"][NAME]
    return found["counted"]


@dataclass
class Watched:
    """What every choice kept, and what it would have kept had it known the truth."""

    coverage: list[torch.Tensor] = field(default_factory=list)
    kept: int = 0
    visible: int = 0
    kept_by_truth: int = 0

    def see(self, choice: Choice, query: torch.Tensor, key: torch.Tensor, scale: float | None) -> None:
        block = choice.query_block
        mass = attention_mass(query, key, causal=True, scale=scale, block=64, rows=512)  # type: ignore[no-untyped-call]
        mass = mass.unflatten(2, (-1, block // 64)).mean(3)
        self.coverage.append((mass * choice.kept).sum(-1).flatten())
        kept, visible = choice.sizes()
        self.kept, self.visible = self.kept + kept, self.visible + visible
        self.kept_by_truth += _kept_by_truth(mass, query.shape[2], key.shape[2], block)


def _kept_by_truth(mass: torch.Tensor, queries: int, keys: int, block: int) -> int:
    """Blocks kept where the estimate is the truth, and each head's share holds the same target on all rows."""
    sizes = (queries, keys, block, 64)
    ranked = Ranked.of(mass, fixed_blocks(*sizes), seen_blocks(*sizes))
    control = CoverageControl(mass.shape[1], CoverageTarget(0.95))
    control.learn(ranked.coverage(mass, control.grid)[0].transpose(0, 1))
    shares = control.shares()[None, :, None].expand(ranked.before.shape[:-1])
    return int(ranked.kept(shares).sum())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Looks on at every choice; nothing of it is changed."""
    seen, choose = Watched(), AuditedPrefill.choose

    def looking_on(self: AuditedPrefill, query: torch.Tensor, key: torch.Tensor, **how: Any) -> Choice:
        choice = choose(self, query, key, **how)
        seen.see(choice, query, key, how.get("scale"))
        return choice

    monkeypatch.setattr(AuditedPrefill, "choose", looking_on)
    return seen


def _check_kept(name: str, length: int, watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokens = reference_models.load(name, torch.float32), reference_models.draw(0, 1, length)
    with torch.no_grad():
        original = model(tokens, use_cache=False).logits[0].log_softmax(-1)
        found = optimized(model)(tokens, use_cache=False).logits[0].log_softmax(-1)
    lost = float((original.exp() * (original - found)).sum(-1).mean())
    same = float((original.argmax(-1) == found.argmax(-1)).float().mean())
    coverage = torch.cat(watched.coverage)
    mean, low = float(coverage.mean()), float(coverage.quantile(0.05))
    density, by_truth = watched.kept / watched.visible, watched.kept_by_truth / watched.visible
    with capsys.disabled():
        print(
            f"\n{name} at {length}: density {density:.3f} ({by_truth:.3f} by the truth), coverage {mean:.4f}, "
            f"p05 {low:.4f}, KL {lost:.5f}, top-1 {same:.4f}"
        )
    assert mean >= 0.98
    assert low >= 0.95
    assert lost <= 0.003
    assert same >= 0.98
    assert density <= DENSER.get(name, 1.4) * by_truth
    assert density < 0.65


@pytest.mark.parametrize("name", EVERY)
def test_at_4096_tokens(name: str, watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    _check_kept(name, 4096, watched, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_at_8192_tokens(name: str, watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    _check_kept(name, 8192, watched, capsys)


def _needles(length: int, depths: tuple[float, ...], count: int) -> list[Any]:
    text = torch.tensor(reference_models.tokenizer()(reference_models.held_out_text(), verbose=False)["input_ids"])
    form = reference_models.needle_format()
    return [
        question
        for depth in depths
        for question in needle_questions(reference_models.tokenizer(), text, length, depth, count, 7, form)
    ]


def _check_needles(name: str, length: int, depths: tuple[float, ...], count: int) -> None:
    model, questions = reference_models.load(name, torch.float32), _needles(length, depths, count)
    original = answers(model, questions)
    assert sum(original) >= 0.9 * len(original)
    assert answers(optimized(model), questions) == original


@pytest.mark.parametrize("name", EVERY)
def test_needles_are_found_as_before(name: str) -> None:
    _check_needles(name, 2048, (0.0, 0.5, 1.0), 1)


@pytest.mark.slow
@pytest.mark.parametrize("length", [4096, 8192])
@pytest.mark.parametrize("name", NAMES)
def test_the_needle_grid_is_that_of_dense_attention(name: str, length: int) -> None:
    _check_needles(name, length, (0.0, 0.25, 0.5, 0.75, 1.0), 2)


@pytest.mark.parametrize("name", EVERY)
def test_certified_mode_drops_no_more_than_it_may_of_any_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[float] = []

    def looking_on(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **how: Any) -> Any:
        out, kept, visible = certified_attention(query, key, value, **how)
        sizes = {name: how[name] for name in ("query_block", "key_block", "scale", "starts")}
        dropped.append(float(dropped_mass(query, key, kept, **sizes).max()))  # type: ignore[no-untyped-call]
        return out, kept, visible

    monkeypatch.setattr(certified_prefill, "certified_attention", looking_on)
    model, tokens = reference_models.load(name, torch.float32), reference_models.draw(0, 1, 2048)
    with torch.no_grad():
        original = model(tokens, use_cache=False).logits[0].log_softmax(-1)
        found = optimized(model, mode="certified")(tokens, use_cache=False).logits[0].log_softmax(-1)
    assert len(dropped) == model.config.get_text_config().num_hidden_layers
    assert max(dropped) <= 0.05
    assert float((original.exp() * (original - found)).sum(-1).mean()) <= 0.003


@pytest.mark.parametrize("name", [param for param in EVERY if "glm4_moe_lite" not in param.values])
def test_decode_over_pages_says_what_dense_decode_says(name: str) -> None:
    model, tokens = reference_models.load(name, torch.float32), reference_models.draw(3, 1, 3000 + 72)
    original = _decoded(model, tokens, 3000)
    found = _decoded(optimized(model, dense_above=0.9), tokens, 3000)
    told = counted(model)
    assert told["sparse_calls"]["decode"] > 0
    lost = float((original.exp() * (original - found)).sum(-1).mean())
    assert lost <= 0.01, told


@torch.no_grad()
def _decoded(model: Any, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """Log-probabilities of the next token, at each step after the prompt, given the true ones before."""
    out = model(tokens[:, :prompt], use_cache=True)
    steps = []
    for place in range(prompt, tokens.shape[1]):
        out = model(tokens[:, place : place + 1], past_key_values=out.past_key_values)
        steps.append(out.logits[0, -1])
    return torch.stack(steps).double().log_softmax(-1)
