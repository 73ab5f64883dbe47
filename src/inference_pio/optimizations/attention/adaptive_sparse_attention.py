"""`adaptive_sparse_attention`: each head reads the blocks that its input asks for, held to a coverage by audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from inference_pio.anatomy.attention_function import OF_PATTERN, Attend, add_pattern, run_pattern
from inference_pio.anatomy.pattern_counts import PatternCounts
from inference_pio.anatomy.pattern_sites import why_no_pattern
from inference_pio.anatomy.plain_calls import UNKNOWN_MASK, ExtentReader, why_dense
from inference_pio.anatomy.walk import attention_modules
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.measure.target import max_positions
from inference_pio.sparsity.adaptive_heads import AdaptiveHeads, AdaptiveSettings, Served
from inference_pio.sparsity.audited_decode import DecodeSettings
from inference_pio.sparsity.audited_prefill import PrefillSettings

ADAPTIVE = "inference_pio_adaptive"


class AdaptiveSparseAttentionParameters(Settings):
    """`coverage`: all but 5% of the audited rows of blocks keep that share of their attention; the mean loses 0.4 of
    what they may. `budget`: tokens that a head reads at decode, at most. `block_size`: queries that share a choice.

    `mode="certified"` drops at most `1 - coverage` of each row's attention, provably, and no more than it can prove.
    """

    coverage: float = Field(default=0.95, gt=0, lt=1)
    budget: int | None = Field(default=None, ge=256)
    block_size: Literal[64, 128] = 128
    scorer: Literal["mean", "antidiagonal"] = "mean"
    page_scorer: Literal["mean", "bounds", "both"] = "mean"
    audit_rate: float = Field(default=1 / 64, gt=0, le=1)
    mode: Literal["estimated", "certified"] = "estimated"
    dense_below: int = Field(default=4096, ge=0)
    dense_above: float = Field(default=0.75, gt=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _certified_has_no_budget(self) -> AdaptiveSparseAttentionParameters:
        if self.mode == "certified" and self.budget is not None:
            raise ValueError(f"budget={self.budget} cannot be kept where mode='certified' keeps what it must: drop one")
        return self

    @property
    def settings(self) -> AdaptiveSettings:
        """What each layer is served with."""
        shared: dict[str, Any] = {
            "coverage": self.coverage, "audit_rate": self.audit_rate, "dense_above": self.dense_above,
        }  # fmt: skip
        return AdaptiveSettings(
            PrefillSettings(scorer=self.scorer, query_block=self.block_size, seed=self.seed, **shared),
            DecodeSettings(scorer=self.page_scorer, budget=self.budget, **shared),
            1 - self.coverage if self.mode == "certified" else None,
            self.dense_below,
        )


class AdaptiveSparseAttention(OptimizationInterface):
    """Long prompts and long decodes read the blocks of keys that matter to each head, chosen anew for each input.

    What a choice keeps is checked exactly on a random share of the rows, in every call; heads whose estimate misleads
    keep more, or all.
    """

    name = "adaptive_sparse_attention"
    optimization_type = OptimizationType.ATTENTION
    stage = Stage.COMPUTATION
    summary = "long contexts: each head reads the blocks its input asks for, held to a coverage by audits"
    weights_read = "none"
    exactness = "approximate"
    Parameters: ClassVar[type[Settings]] = AdaptiveSparseAttentionParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"dense_below": 0}

    def sites(self, model: nn.Module) -> Sequence[Site]:
        short = _why_too_short(model, self.parameters.dense_below)
        return [
            Site(path, role, frozenset({"attention.pattern"}), why_no_pattern(module, role) or short, whole=False)
            for path, module, role in attention_modules(model)
        ]

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        asked = self.parameters
        return {
            "mode": asked.mode, "scorer": asked.scorer, "coverage": asked.coverage, "block_size": asked.block_size,
            "dense_below": asked.dense_below,
        }  # fmt: skip

    def apply(self, model: nn.Module) -> nn.Module:
        add_pattern(ADAPTIVE, attend_adaptively, _count_as_dense)
        paths = [site.path for site in self.step.sites]
        counts, reader = PatternCounts(), ExtentReader()
        for number, path in enumerate(paths):
            module = model.get_submodule(path)
            heads = AdaptiveHeads(self.parameters.settings, number, counts, reader)
            self.journal.set(module, ADAPTIVE, heads)
            self.journal.hook(module, "forward_pre", _see_cache, with_kwargs=True)
        run_pattern(self.journal, model, paths, ADAPTIVE)
        self.say(
            backend="triton, over lists of blocks" if self.device.type == "cuda" else "torch, over gathered blocks",
            note=f"rows of fewer than {self.parameters.dense_below} tokens stay dense (dense_below); what is kept is "
            "decided as the model runs: the status counts it, with what audits found.",
        )
        if self.device.type != "cuda":
            self.say(
                note="on a CPU gathered blocks are faster than dense attention only where far fewer than half remain."
            )
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        held = {path: vars(module)[ADAPTIVE] for path, module in model.named_modules() if ADAPTIVE in vars(module)}
        if not held:
            return {}
        counts: PatternCounts = next(iter(held.values())).counts
        audits = {path: found for path, heads in held.items() if (found := heads.report())}
        return {**counts.to_json(), "audits": audits}


def attend_adaptively(
    attend: Attend, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """The pattern: serve what can be served over chosen blocks, and leave the rest to the dense function, counted."""
    heads: AdaptiveHeads = vars(module)[ADAPTIVE]
    if query.shape[2] > 1:
        heads.many_tokens()
    reason = why_dense(module, rest) or heads.why_dense(query, key)
    if reason is None:
        extent = heads.reader.read(mask, query, key)
        served = heads.serve(query, key, value, extent, rest.get("scaling")) if extent else UNKNOWN_MASK
        if isinstance(served, Served):
            heads.counts.served(served.phase, served.backend, kept=served.kept, of=served.visible)
            return served.out.transpose(1, 2).contiguous(), None
        reason = served
    heads.counts.left(reason)
    return attend(module, query, key, value, mask, **rest)


def _see_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell a layer which cache it is called with: the attention function is handed the keys alone."""
    heads: AdaptiveHeads = vars(module)[ADAPTIVE]
    heads.given(kwargs.get("past_key_values"), getattr(module, "layer_idx", None))


setattr(_see_cache, OF_PATTERN, True)


def _count_as_dense(module: nn.Module, reason: str, calls: int) -> None:
    heads: AdaptiveHeads = vars(module)[ADAPTIVE]
    heads.counts.left(reason, calls)


def _why_too_short(model: nn.Module, dense_below: int) -> str | None:
    most = max_positions(model)
    if most is None or most >= dense_below:
        return None
    return f"the model takes at most {most} tokens, and attention stays dense below {dense_below}"
