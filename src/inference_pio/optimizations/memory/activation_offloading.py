"""`activation_offloading`: prompts, MLPs and losses piece by piece, and keys and values on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from inference_pio.anatomy.activation_plan import ActivationPlan, plan_activations
from inference_pio.anatomy.activation_shapes import activation_shapes
from inference_pio.anatomy.attention_name import dense_part
from inference_pio.anatomy.call_guards import is_foreign
from inference_pio.anatomy.decoder_stack import decoder_stack, why_not_behind_a_cache
from inference_pio.anatomy.last_states import ask_for_last_states
from inference_pio.anatomy.loss_in_pieces import loss_of, make_losses_in_pieces, why_no_loss
from inference_pio.anatomy.pieces import pieces_of
from inference_pio.anatomy.prompt_in_pieces import lead_prompts_in_pieces
from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.rows_in_pieces import compute_rows_in_pieces, row_blocks
from inference_pio.anatomy.walk import attention_modules
from inference_pio.cache.staging import AHEAD
from inference_pio.compat import attention_name
from inference_pio.contract.byte_size import bytes_in, in_words
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.decoding.hosted_generate import (
    KV_CACHE,
    host_the_cache,
    hosted_calls,
    placement_decision,
    placement_sites,
    said_of_placement,
)
from inference_pio.errors import PlanError
from inference_pio.measure.device_memory import device_bytes
from inference_pio.streaming.hooks import slot_bytes_of
from inference_pio.undo.journal import Journal
from inference_pio.undo.stored_bytes import stored_bytes

PROMPT, ROWS, LOSS = "decoder", "mlp", "loss"
"""The roles of sites: the stack of layers, an MLP or a mixture of experts, the head whose logits a loss is made of."""
MASKED = (
    "the library's attention is given a mask by each piece of a prompt, and copies all keys and values for it: kernels "
    "that need none (docs/activations.md) keep to fewer bytes, and to the time of a prompt in one piece"
)
SIZES = {PROMPT: "prefill_chunk_size", ROWS: "mlp_chunk_tokens", LOSS: "logits_chunk_tokens"}


class ActivationOffloadingParameters(Settings):
    """`max_activation_bytes` (also "2GB") is what a forward may need at once beside weights, cache and what it gives
    back; `max_memory_ratio` the same as a share of the device's memory that the weights leave.

    Sizes of pieces, in tokens of all rows together, are planned from it, for texts of up to `text_tokens` (as many as
    the model allows); each may be given, and 0 leaves whole. `kv_placement` is where `generate` keeps keys and values:
    on the host, those of `resident_layers` stay on the device, and others come back `layers_ahead` ahead, into one
    buffer more.
    """

    max_activation_bytes: int | str | None = None
    max_memory_ratio: float | None = Field(default=None, gt=0, le=1)
    text_tokens: int | None = Field(default=None, ge=1)
    prefill_chunk_size: int | None = Field(default=None, ge=0)
    mlp_chunk_tokens: int | None = Field(default=None, ge=0)
    logits_chunk_tokens: int | None = Field(default=None, ge=0)
    kv_placement: Literal["device", "host"] = "device"
    resident_layers: int = Field(default=0, ge=0)
    layers_ahead: int = Field(default=AHEAD, ge=1)

    @field_validator("max_activation_bytes")
    @classmethod
    def _a_size(cls, size: int | str | None) -> int | str | None:
        if size is not None:
            bytes_in(size)
        return size

    @model_validator(mode="after")
    def _one_budget(self) -> ActivationOffloadingParameters:
        if self.max_activation_bytes is not None and self.max_memory_ratio is not None:
            raise ValueError("max_activation_bytes and max_memory_ratio are two budgets for one thing: give one")
        if self.resident_layers and self.kv_placement == "device":
            raise ValueError("resident_layers stay where kv_placement='host' moves the others: give both, or neither")
        return self


class ActivationOffloading(OptimizationInterface):
    """What a forward holds for a while, kept small: pieces of a prompt behind one another's cache, rows of an MLP, and
    logits of a loss, a piece at a time.
    """

    name = "activation_offloading"
    optimization_type = OptimizationType.MEMORY
    stage = Stage.WORKING
    summary = "prompts, MLPs and losses piece by piece within so many bytes; keys and values on the host"
    exactness = "exact up to rounding"
    weights_read = "none"
    Parameters: ClassVar[type[Settings]] = ActivationOffloadingParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {
        "prefill_chunk_size": 6, "mlp_chunk_tokens": 3, "logits_chunk_tokens": 5, "kv_placement": "host",
    }  # fmt: skip

    def sites(self, model: nn.Module) -> Sequence[Site]:
        asked = self.parameters
        found = self._piece_sites(model)
        if asked.kv_placement == "host":
            places = placement_sites(model, self.device, asked.resident_layers)
            found += [site for site in places if site.path]  # without an attention, the lack of a stack says it all
        return found

    def _piece_sites(self, model: nn.Module) -> list[Site]:
        found = decoder_stack(model)
        if isinstance(found, str):
            return [Site("", PROMPT, skip=found, whole=False)]
        path, stack = found
        planned = self._plan(model, stack)
        no_prompt, no_rows = _why_no_prompt(stack), self._why_not(ROWS, planned)
        return [
            Site(path, PROMPT, skip=no_prompt or self._why_not(PROMPT, planned), whole=False),
            *(
                Site(f"{path}.{block}" if path else block, ROWS, skip=_foreign(module) or no_rows, whole=False)
                for block, module in row_blocks(stack)
            ),
            *(
                Site(head, LOSS, skip=why_no_loss(model) or self._why_not(LOSS, planned), whole=False)
                for head in _heads(model)
            ),
        ]

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        found, caches = decoder_stack(model), [site for site in sites if site.role == KV_CACHE]
        pieces = {} if isinstance(found, str) else self._plan(model, found[1]).to_json()
        placed = placement_decision(model, caches, self.parameters.layers_ahead) if caches else None
        return pieces | ({"kv_cache": placed} if placed else {})

    def apply(self, model: nn.Module) -> nn.Module:
        decision = self.step.decision
        for site in [site for site in self.step.sites if site.role != KV_CACHE]:
            whose = model if site.role == LOSS else model.get_submodule(site.path)
            ACTS[site.role](self.journal, whose, decision[SIZES[site.role]])
        roles = {site.role for site in self.step.sites}
        for note in _told(decision, roles):
            self.say(note=note)
        if PROMPT in roles:
            ask_for_last_states(self.journal, model)
        if PROMPT in roles and _reads_masks(model):
            self.say(note=MASKED)
        if KV_CACHE in roles:
            host_the_cache(self.journal, model, decision["kv_cache"])
            self.say(note=said_of_placement(decision["kv_cache"]))
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        found = decoder_stack(model)
        if isinstance(found, str):
            return {}
        told = {PROMPT: pieces_of(found[1]), LOSS: getattr(loss_of(model), "pieces", None)}
        counted = {role: pieces.to_json() for role, pieces in told.items() if pieces is not None}
        blocks = [pieces for _, block in row_blocks(found[1]) if (pieces := pieces_of(block)) is not None]
        if blocks:
            left = sum((block.left for block in blocks), Counter[str]())
            calls, made = sum(block.calls for block in blocks), sum(block.made for block in blocks)
            counted[ROWS] = {"calls": calls, "pieces": made, "left_whole": dict(left)}
        hosted = hosted_calls(model)
        return counted | ({KV_CACHE: hosted.to_json()} if hosted is not None else {})

    def _plan(self, model: nn.Module, stack: nn.Module) -> ActivationPlan:
        asked = self.parameters
        prompt = 0 if _why_no_prompt(stack) else asked.prefill_chunk_size
        return plan_activations(
            activation_shapes(model, stack, self.device), self._budget(model), text=asked.text_tokens,
            prompt=prompt, mlp=asked.mlp_chunk_tokens, logits=asked.logits_chunk_tokens,
        )  # fmt: skip

    def _budget(self, model: nn.Module) -> int | None:
        """The bytes that are asked for, or the share of what the weights leave of the device's memory."""
        if self.parameters.max_activation_bytes is not None:
            return bytes_in(self.parameters.max_activation_bytes)
        ratio: float | None = self.parameters.max_memory_ratio
        if ratio is None:
            return None
        total = device_bytes(self.device)
        weights = stored_bytes(model) + slot_bytes_of(model)
        if weights >= total:
            raise PlanError(
                f"max_memory_ratio is a share of what the weights leave of the memory of {self.device}, and they take "
                f"{in_words(weights)} of {in_words(total)}: give max_activation_bytes. Nothing was touched."
            )
        return max(1, int(ratio * (total - weights)))

    def _why_not(self, role: str, planned: ActivationPlan) -> str | None:
        """Why the sizes of pieces, or a budget that is met without any, leave nothing to do."""
        size = getattr(self.parameters, SIZES[role])
        if size == 0:
            return f"{SIZES[role]}=0 leaves it whole"
        whole = planned.whole_loss_bytes if role == LOSS else planned.whole_bytes
        if size is None and planned.budget is not None and whole <= planned.budget:
            return (
                f"the budget is met without it: a text of {planned.text} tokens needs {in_words(whole)} at once, and "
                f"{in_words(planned.budget)} are allowed"
            )
        return None


ACTS: dict[str, Callable[[Journal, nn.Module, int], None]] = {
    PROMPT: lead_prompts_in_pieces, ROWS: compute_rows_in_pieces, LOSS: make_losses_in_pieces,
}  # fmt: skip


def _reads_masks(model: nn.Module) -> bool:
    """Whether attention is the library's own, which tells what comes later by a mask where a cache stands before it."""
    configs = [module.config for _, module, role in attention_modules(model) if role == "attention"]
    return any(dense_part(attention_name(config) or "") in ("sdpa", "eager") for config in configs)


def _why_no_prompt(stack: nn.Module) -> str | None:
    return why_not_behind_a_cache(stack) or _foreign(stack)


def _heads(model: nn.Module) -> list[str]:
    """The path of the head, whose logits a loss is made of, if there is one."""
    return [path for path, role in roles_of(model).items() if role == "head"]


def _foreign(module: nn.Module) -> str | None:
    return "its forward is overridden by somebody else" if is_foreign(module.__dict__.get("forward")) else None


def _told(decision: Mapping[str, Any], roles: Collection[str]) -> Iterator[str]:
    """A decision in words, for a receipt."""
    prompt, rows, logits = (decision[SIZES[role]] for role in (PROMPT, ROWS, LOSS))
    if PROMPT in roles:
        yield (
            f"prompts of more than {prompt} tokens (of all rows) go through the layers in pieces, each behind the "
            "cache of those before it; a call without a cache, or with gradients, stays whole"
        )
    if ROWS in roles:
        yield f"MLPs and experts compute {rows} rows at a time"
    if PROMPT in roles or ROWS in roles:
        yield (
            f"for a text of {decision['text_tokens']} tokens a layer needs {in_words(decision['layer_bytes'])} at once "
            f"and {in_words(decision['whole_bytes'])} whole, beside weights, cache and what a forward gives back"
        )
    if LOSS in roles:
        yield f"a loss widens the logits of {logits} tokens at a time, {in_words(decision['loss_bytes'])}"
