"""What becomes of trained models under several optimizations at once: how far their answers move, and their bytes.

Two errors in one direction add up as the roots of their divergences do, so what several cost together is held to the
square of the sum of the roots of what each costs alone. In float32, where rounding hides nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_pio.configuration.config_manager import get_config_manager
from inference_pio.errors import NoEffect, PlanError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure.divergence import token_divergences
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.quality import reference_models
from tests.quality.test_tensor_compression import calibration_tokens

WORKS, REFUSED, NOTHING = "works", "refused", "no effect"
WINDOW, PROMPT, NEW_TOKENS, SHORT = 512, 64, 16, 96
EXACT = 1e-9
"""Nats a token that another order of sums may cost in float32; what was measured is 2e-12."""
TOGETHER = 1.5
"""Times the square of the sum of roots; the most that was measured is 1.26, where int8 rounds folded weights."""
AGAINST_CHANCE = 0.05
"""The most of what a model that holds every token equally likely would lose."""
REGRET = 0.1
"""Nats a token, at most, by which a token that was generated may miss the best one of the same model's forward."""


@dataclass(frozen=True)
class Cell:
    """What became of some optimizations on one model. `bytes_share` is what its weights and what is held for undo
    take, over the plain model's weights; `same_tokens` tells whether greedy generation says what the plain model says.
    """

    kind: str
    reason: str = ""
    kl: float = 0.0
    regret: float = 0.0
    bytes_share: float = 1.0
    same_tokens: bool = True


def parameters() -> dict[str, dict[str, Any]]:
    """Under these every optimization acts on the trained models, and costs what a user would let it cost."""
    text = calibration_tokens()[:2]
    return {
        "activation_offloading": {"prefill_chunk_size": 256, "mlp_chunk_tokens": 96, "logits_chunk_tokens": 64},
        "adaptive_sparse_attention": {"dense_below": 0, "dense_above": 1.0},
        "disk_offloading": {"host_budget": "80%", "threads": 1},
        "kernel_fusion": {"level": "graph"},
        "model_surgery": {"edits": ["patch_linear", "latent_decode", "dead_modules", "norm_folding"]},
        "snn_conversion": {"levels": 31, "text": text},
        "sparse_attention": {"sinks": 64, "window": 128, "dense_below": 0, "calibration": text},
        "structured_pruning": {"pruning_ratio": 0.1, "align": 8, "allocation": "uniform", "text": text},
        "tensor_compression": {"format": "int8", "kv_cache": "int8"},
        "tensor_decomposition": {
            "decomposition_ratio": 0.1, "align": 8, "refuse_slower": False, "allocation": "uniform", "text": text,
        },
    }  # fmt: skip


MOST_ALONE = {
    "adaptive_sparse_attention": 0.001, "snn_conversion": 0.02, "sparse_attention": 0.02, "structured_pruning": 0.15,
    "tensor_compression": 0.005, "tensor_decomposition": 0.15,
}  # fmt: skip
"""Nats a token that each may cost alone under the parameters here; who is not among them is exact."""


def triples() -> list[tuple[str, ...]]:
    """Every three members of a shipped profile, on whatever class of hardware."""
    found: set[tuple[str, ...]] = set()
    for profile in map(get_config_manager().get_profile, get_config_manager().list_profiles()):
        for hardware in (None, *profile.hardware):
            found.update(itertools.combinations(sorted(profile.for_hardware(hardware).members), 3))
    return sorted(found)


class Bench:
    """One trained model on which optimizations come and go, with what it said at first."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.model = reference_models.load(family, torch.float32)
        self.manager = ModularOptimizationManager()
        self.before = fingerprint(self.model)
        self.plain = Plain.of(family)

    def apply(self, *names: str) -> None:
        known = parameters()
        given = {name: known[name] for name in names if name in known}
        self.manager.apply_optimizations(self.model, list(names), parameters=given)

    def remove(self, *names: str) -> None:
        self.manager.remove_optimizations(self.model, list(names) or None)

    def short(self) -> Tensor:
        """What it says of little text, to compare bit by bit."""
        return answers(self.model, self.family, SHORT)

    def measured(self) -> Cell:
        """How far it is from the plain model, as it stands now."""
        said = answers(self.model, self.family, WINDOW)
        kl = float(token_divergences(self.plain.answers, said).mean())
        tokens = generated(self.model)
        status = self.manager.get_optimization_status(self.model)
        share = (status["weight_bytes"] + status["held_bytes"]) / self.plain.weight_bytes
        same = torch.equal(tokens, self.plain.tokens)
        return Cell(WORKS, "", kl, regret(self.model, tokens), round(share, 4), same)

    def check_untouched(self) -> None:
        assert self.before.differences(fingerprint(self.model)) == []
        assert torch.equal(self.short(), self.plain.short)


@dataclass(frozen=True)
class Plain:
    """What a model says that has nothing applied."""

    answers: Tensor
    short: Tensor
    tokens: Tensor
    weight_bytes: int

    @staticmethod
    @functools.cache
    def of(family: str) -> Plain:
        model = reference_models.load(family, torch.float32)
        weight_bytes = ModularOptimizationManager().get_optimization_status(model)["weight_bytes"]
        said = [answers(model, family, length) for length in (WINDOW, SHORT)]
        return Plain(said[0], said[1], generated(model), weight_bytes)

    @property
    def chance(self) -> float:
        """The divergence of one that holds every token equally likely."""
        return float(token_divergences(self.answers, torch.zeros_like(self.answers)).mean())


@torch.no_grad()
def answers(model: Any, family: str, length: int) -> Tensor:
    """Logits [tokens, vocabulary] of held-out text, and of a picture where a model sees one."""
    rows: Tensor = model(reference_models.draw(3, 1, length)).logits[0]
    if family != "qwen3_vl":
        return rows
    given = _picture()
    with tiny._rope_deltas_kept(model):
        return torch.cat([rows, model(**{**given, "pixel_values": given["pixel_values"].float()}).logits[0]])


@functools.cache
def _picture() -> dict[str, Tensor]:
    return reference_models.pictures(1)[0].inputs


@torch.no_grad()
def generated(model: Any) -> Tensor:
    """A held-out prompt and what greedy generation makes of it."""
    prompt = reference_models.draw(2, 1, PROMPT)
    with tiny._rope_deltas_kept(model):
        found: Tensor = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    return found


@torch.no_grad()
def regret(model: Any, tokens: Tensor) -> float:
    """By how much, in nats a token, what was generated step by step misses what one forward finds best."""
    with tiny._rope_deltas_kept(model):
        said = model(tokens[:, :-1]).logits[0, PROMPT - 1 :].double().log_softmax(-1)
    chosen = said.gather(-1, tokens[0, PROMPT:, None])[:, 0]
    return float((said.amax(-1) - chosen).mean())


@functools.cache
def alone(name: str, family: str) -> tuple[Cell, Tensor | None]:
    """One optimization by itself: what it costs, and what the model then says of little text."""
    bench = Bench(family)
    try:
        bench.apply(name)
    except NoEffect as error:
        bench.check_untouched()
        return Cell(NOTHING, gist(error)), None
    return bench.measured(), bench.short()


def pair_tried(pair: Sequence[str], family: str) -> Cell:
    """One after the other, the first away, back on top, the other away, and nothing: each state as it must be.

    Raises AssertionError where an order, an undo or a replay gives other bits, or one order alone is refused.
    """
    if any(alone(name, family)[0].kind == NOTHING for name in pair):
        return Cell(NOTHING)
    first, second = pair
    bench = Bench(family)
    refusal = _refusal(bench, pair)
    if refusal is not None:
        return refusal
    bench.apply(first)
    bench.apply(second)
    both, cell = bench.short(), bench.measured()
    bench.remove(first)
    assert torch.equal(bench.short(), alone(second, family)[1]), f"{second} without {first} on {family}"
    bench.apply(first)  # which is the other order, and the replay
    assert torch.equal(bench.short(), both), f"{first} over {second} on {family}"
    bench.remove(second)
    assert torch.equal(bench.short(), alone(first, family)[1]), f"{first} without {second} on {family}"
    bench.remove()
    bench.check_untouched()
    return cell


def _refusal(bench: Bench, pair: Sequence[str]) -> Cell | None:
    """Why two are not taken together, asked for in every way; None where they are."""
    refusals: list[PlanError] = []
    ways = ([tuple(pair)], [(pair[0],), (pair[1],)], [(pair[1],), (pair[0],)])
    try:
        bench.manager.plan(bench.model, [bench.manager.wanted(name, parameters().get(name)) for name in pair])
    except PlanError as error:
        refusals.append(error)
    else:
        return None
    for calls in ways:
        try:
            for names in calls:
                bench.apply(*names)
        except PlanError as error:
            refusals.append(error)
        bench.remove()
        bench.check_untouched()
    assert len(refusals) == 1 + len(ways), f"{pair} on {bench.family} is refused in one order alone: {refusals}"
    nothing = all(isinstance(error, NoEffect) for error in refusals)
    return Cell(NOTHING if nothing else REFUSED, gist(refusals[0]))


def together(names: Sequence[str], family: str) -> Cell:
    """Several in one call, measured and taken back; REFUSED or NOTHING where one of them finds no place."""
    bench = Bench(family)
    try:
        bench.apply(*names)
    except PlanError as error:
        bench.check_untouched()
        return Cell(NOTHING if isinstance(error, NoEffect) else REFUSED, gist(error))
    cell = bench.measured()
    bench.remove()
    bench.check_untouched()
    return cell


def gist(error: Exception) -> str:
    """A reason without what is this model's own.

    >>> gist(NoEffect("x does not apply to this Qwen3ForCausalLM: why (3 places). Do y."))
    'x finds nothing to do: why'
    """
    said = re.sub(r"\s+", " ", str(error)).split(". ")[0].strip(" .")
    said = re.sub(r"does not apply to this \w+", "finds nothing to do", re.sub(r" \(\d+ places\)", "", said))
    said = re.sub(r"at [\w.]+ in one stage", "of the same layers in one stage", said)
    return re.sub(r"the budget is .*", "what always stays is more than its budget, so small are these models", said)


def most_together(costs: Sequence[float]) -> float:
    """What several may cost together in nats a token, from what each costs alone.

    >>> round(most_together([0.01, 0.04]), 6)
    0.135
    >>> most_together([0.0, 0.0]) == EXACT
    True
    """
    return TOGETHER * sum(math.sqrt(cost) for cost in costs) ** 2 + EXACT


def why_wrong(names: Sequence[str], cell: Cell, costs: Sequence[float], chance: float) -> str | None:
    """What tells that a cell's answers are wrong; None where they are as its members' own promise."""
    exact = not set(names) & set(MOST_ALONE)
    most = EXACT if exact else most_together(costs)
    if not cell.kl <= most:
        parts = ", ".join(f"{cost:.3g}" for cost in costs)
        return f"KL {cell.kl:.3g} nats/token, and its parts ({parts}) allow {most:.3g}"
    if not cell.kl <= AGAINST_CHANCE * chance:
        return f"KL {cell.kl:.3g} nats/token, and {chance:.3g} is chance"
    if exact and not cell.same_tokens:
        return "it generates other tokens than the plain model, and every part is exact"
    if not cell.regret <= REGRET:
        return f"what it generates misses the best of its own forward by {cell.regret:.3g} nats/token"
    return None
