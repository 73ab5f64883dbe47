"""`sparse_attention`: heads that look near read the first tokens and a window alone; the others stay dense."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from inference_pio.anatomy.attention_function import add_pattern, run_pattern
from inference_pio.anatomy.fixed_heads import FIXED_HEADS, FixedHeads, attend_with_fixed_heads
from inference_pio.anatomy.pattern_counts import PatternCounts
from inference_pio.anatomy.pattern_sites import why_no_pattern
from inference_pio.anatomy.walk import attention_modules
from inference_pio.calibration.pattern_profile import make_profile, read_profile, tokens_needed
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting, NoEffect
from inference_pio.kernels.fixed_pattern import KEY_BLOCK, FixedPattern, causal_pairs
from inference_pio.measure.target import max_positions

WINDOW = 2048
REFERENCE_LENGTH = 32768
"""The length at which `sparsity_ratio` is the share of attention left out, and at which densities are told."""


class SparseAttentionParameters(Settings):
    """Lengths are in tokens. `sparsity_ratio` chooses the window that leaves out that share at 32768 tokens.

    A head follows the pattern if its coverage, and that of all heads that share its keys, is `min_coverage` or more:
    measured on `tokens` tokens of `calibration`, or told by a `profile` made before (or the path of its JSON).
    """

    sinks: int = Field(default=128, ge=0)
    window: int | None = Field(default=None, ge=1)
    stride: int = Field(default=0, ge=0, multiple_of=KEY_BLOCK)
    sparsity_ratio: float | None = Field(default=None, gt=0, lt=1)
    min_coverage: float = Field(default=0.96, ge=0, le=1)
    dense_below: int = Field(default=4096, ge=0)
    dense_layers: int = Field(default=0, ge=0)
    profile: dict[str, Any] | str | None = None
    calibration: list[str] | list[list[int]] | None = None
    tokens: int = Field(default=16384, ge=1)

    @model_validator(mode="after")
    def _one_budget(self) -> SparseAttentionParameters:
        if self.window is not None and self.sparsity_ratio is not None:
            raise ValueError(
                f"window={self.window} and sparsity_ratio={self.sparsity_ratio} are two budgets: give one of them"
            )
        return self

    @property
    def pattern(self) -> FixedPattern:
        """The pattern that is asked for, its window chosen."""
        window = self.window or WINDOW
        if self.sparsity_ratio is not None:
            rest = REFERENCE_LENGTH * (1 - math.sqrt(self.sparsity_ratio)) - self.sinks
            window = max(KEY_BLOCK, round(rest / KEY_BLOCK) * KEY_BLOCK)
        return FixedPattern(self.sinks, window, self.stride)


class SparseAttention(OptimizationInterface):
    """A fixed pattern for the heads that a profile of this model shows to look near.

    Independent of what is read and exact for its pattern: a prompt as a whole, in pieces or token by token sees the
    same keys. What heads do not see is lost, which the profile bounds on its text and no other.
    """

    name = "sparse_attention"
    optimization_type = OptimizationType.ATTENTION
    stage = Stage.COMPUTATION
    summary = "heads that look near read the first tokens and a window of the last ones alone"
    exactness = "approximate"
    Parameters: ClassVar[type[Settings]] = SparseAttentionParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {
        "sinks": 64, "window": 64, "dense_below": 0, "min_coverage": 0.0,
        "calibration": [[token % 100 + 1 for token in range(512)]],
    }  # fmt: skip

    def sites(self, model: nn.Module) -> Sequence[Site]:
        return list(_sites(model, self.parameters))

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        pattern, asked = self.parameters.pattern, self.parameters
        return {
            "sinks": pattern.sinks, "window": pattern.window, "stride": pattern.stride,
            "dense_below": asked.dense_below, "min_coverage": asked.min_coverage,
        }  # fmt: skip

    @property
    def runs_the_model(self) -> bool:
        return self.parameters.profile is None

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        asked, pattern = self.parameters, self.parameters.pattern
        if asked.profile is not None:
            profile = read_profile(asked.profile, pattern)
        else:
            profile = make_profile(model, pattern, asked.calibration, asked.tokens)
        paths = [site.path for site in sites]
        groups = {path: _groups(profile.coverage, path, model.get_submodule(path)) for path in paths}
        heads = {
            path: [number for number, shares in enumerate(of_keys) if min(shares) >= asked.min_coverage]
            for path, of_keys in groups.items()
        }
        if not any(heads.values()):
            best = max(min(shares) for of_keys in groups.values() for shares in of_keys)
            raise NoEffect(
                f"no head of this {type(model).__name__} keeps {asked.min_coverage:.0%} of its attention within the "
                f"pattern (the best keeps {best:.1%}): all would stay dense. Choose a larger window."
            )
        coverage = {path: list(profile.coverage[path]) for path in paths}
        return {**decision, "key_heads": heads, "coverage": coverage, "calibration": dict(profile.source)}

    def apply(self, model: nn.Module) -> nn.Module:
        add_pattern(FIXED_HEADS, attend_with_fixed_heads, _count_as_dense)
        paths, counts = [site.path for site in self.step.sites], PatternCounts()
        if self.step.forecast:
            self.say(note="which heads follow the pattern is decided when it is applied, by a profile of the model.")
        chosen = self.step.decision.get("key_heads", {path: [0] for path in paths})
        acting = [path for path in paths if chosen[path]]
        for path in acting:
            own = FixedHeads(self.parameters.pattern, tuple(chosen[path]), self.parameters.dense_below, counts)
            self.journal.set(model.get_submodule(path), FIXED_HEADS, own)
        run_pattern(self.journal, model, acting, FIXED_HEADS)
        self._tell(model)
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        held = (vars(module).get(FIXED_HEADS) for module in model.modules())
        first: FixedHeads | None = next((heads for heads in held if heads is not None), None)
        return first.counts.to_json() if first is not None else {}

    def _tell(self, model: nn.Module) -> None:
        pattern, asked = self.parameters.pattern, self.parameters
        share = pattern.seen(0, REFERENCE_LENGTH) / causal_pairs(0, REFERENCE_LENGTH)
        self.say(
            backend="triton lists and pages, torch where they do not serve"
            if self.device.type == "cuda" else "torch, over gathered keys",
            note=f"a head that follows the pattern computes {share:.1%} of its attention at {REFERENCE_LENGTH} tokens.",
        )  # fmt: skip
        if "key_heads" in self.step.decision:
            chosen, coverage = self.step.decision["key_heads"], self.step.decision["coverage"]
            all_heads = sum(len(_groups(coverage, path, model.get_submodule(path))) for path in chosen)
            self.say(note=f"{sum(map(len, chosen.values()))} of {all_heads} key heads follow the pattern.")
        if asked.dense_below > pattern.whole_until:
            self.say(note=f"rows of fewer than {asked.dense_below} tokens stay dense (dense_below).")


def _count_as_dense(module: nn.Module, reason: str, calls: int) -> None:
    heads: FixedHeads = vars(module)[FIXED_HEADS]
    heads.counts.left(reason, calls)


def _groups(coverage: Mapping[str, list[float]], path: str, module: nn.Module) -> list[list[float]]:
    """The coverage of the query heads that share each key head. Raises InvalidSetting where a profile lacks them."""
    shared = getattr(module, "num_key_value_groups", 1)
    if path not in coverage or len(coverage[path]) % shared:
        known = f"{len(coverage[path])} heads" if path in coverage else "nothing"
        raise InvalidSetting(f"the profile knows {known} of {path}: it was made for another model, make a new one.")
    heads = coverage[path]
    return [heads[first : first + shared] for first in range(0, len(heads), shared)]


def _sites(model: nn.Module, asked: SparseAttentionParameters) -> Iterator[Site]:
    layer, short = 0, _why_too_short(model, asked)
    for path, module, role in attention_modules(model):
        skip = why_no_pattern(module, role)
        if skip is None:
            skip = short
            if layer < asked.dense_layers:
                skip = f"one of the first {asked.dense_layers} layers, which dense_layers keeps dense"
            layer += 1
        yield Site(path, role, claims=frozenset({"attention.pattern"}), skip=skip, whole=False)


def _why_too_short(model: nn.Module, asked: SparseAttentionParameters) -> str | None:
    most = max_positions(model)
    needed = max(asked.dense_below, tokens_needed(asked.pattern))
    if most is None or most >= needed:
        return None
    return f"the model takes at most {most} tokens, and attention stays dense below {needed}"
