"""Attention with grouped heads: told by what its forward reads and by its bits; norm and rotation are one kernel."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.anatomy.call_guards import library_forward, serves, why_not_replaced
from inference_pio.anatomy.first_tokens import kept
from inference_pio.anatomy.fused_norm import eps_of, is_readable, why_no_rms_norm
from inference_pio.anatomy.merged_linears import Multiply, merged_linear
from inference_pio.anatomy.names import ATTENTION_TABLE
from inference_pio.anatomy.parts import widths
from inference_pio.anatomy.stand_in import OTHER_BITS, WIDTH, Linear, Norm, differs, drawn, stand_in
from inference_pio.kernels import few_rows
from inference_pio.kernels.rotary import norm_rotate

QKV = ("q_proj", "k_proj", "v_proj")
NORMS = ("q_norm", "k_norm")
PLAIN_ATTENTION, WINDOW = "eager_attention_forward", "sliding_window"
HEAD = 8
"""The width of a head in a stand-in."""
ARGUMENTS = ["self", "hidden_states", "position_embeddings", "attention_mask", "past_key_values", "kwargs"]
READS = frozenset(
    {
        "shape",
        "head_dim",
        *QKV,
        *NORMS,
        "use_qk_norm",
        "view",
        "transpose",
        "apply_rotary_pos_emb",
        "update",
        "layer_idx",
    }
    | {ATTENTION_TABLE, "get_interface", "config", "_attn_implementation", PLAIN_ATTENTION, "training"}
    | {"attention_dropout", "scaling", WINDOW, "getattr", "reshape", "contiguous", "o_proj"}
)
"""The names in a forward that does nothing but what is done here."""


def why_no_fused_attention(module: nn.Module) -> str | None:
    """Why an attention module keeps the library's forward; None where ours may stand in."""
    if reason := why_not_replaced(module) or _why_other_form(type(module)):  # type: ignore[arg-type]
        return reason
    layers = [widths(module.get_submodule(name)) for name in QKV]
    head_dim = getattr(module, "head_dim", None)
    if None in layers or not isinstance(head_dim, int) or any(layer[1] % head_dim for layer in layers):  # type: ignore[index]
        return "the widths of its layers do not fit each other"
    norms = [module._modules.get(name) for name in NORMS]
    if not any(norms):
        return None
    if None in norms or any(why_no_rms_norm(norm) for norm in norms):  # type: ignore[arg-type]
        return "the norms of its queries and keys are of another kind"
    eps = {eps_of(norm) for norm in norms}  # type: ignore[arg-type]
    fit = len(eps) == 1 and all(len(norm.weight) == head_dim for norm in norms)  # type: ignore[union-attr, arg-type]
    return None if fit else "the norms of its queries and keys are not over the width of a head"


@functools.cache
def _why_other_form(kind: type[nn.Module]) -> str | None:
    names = _code(kind).co_names
    if foreign := [name for name in names if name not in READS]:
        return f"its forward does more than is known here ({', '.join(foreign[:3])})"
    if list(inspect.signature(inspect.unwrap(kind.forward)).parameters) != ARGUMENTS:
        return "its forward takes other arguments than are known here"
    full, half = (
        differs(partial(_try, attention_forward, kind, turned), partial(_try, kind.forward, kind, turned))
        for turned in (HEAD, HEAD // 2)
    )
    return full or (half if half == OTHER_BITS else None)  # not every class can turn half of a head's columns


def _try(forward: Callable[..., Any], kind: type[nn.Module], turned: int, dtype: torch.dtype) -> Tensor:
    """What a forward makes of two rows, in a small module of its class with four heads and two key heads."""
    names, heads, width = _code(kind).co_names, (4, 2, 2), HEAD
    parts: dict[str, Any] = {name: Linear(WIDTH, heads[seed] * width, seed, dtype) for seed, name in enumerate(QKV)}
    parts |= {name: Norm(width, seed, dtype) for seed, name in enumerate(NORMS, 4) if name in names}
    config = SimpleNamespace(_attn_implementation="eager")
    parts |= {"o_proj": Linear(heads[0] * width, WIDTH, 3, dtype), "config": config, "head_dim": width, "layer_idx": 0}
    parts |= {"scaling": width**-0.5, "attention_dropout": 0.5, "num_key_value_groups": 2, "use_qk_norm": True}
    turns = drawn(2, 2, 3, turned, seed=6).cos().to(dtype)
    module = stand_in(kind, parts | {WINDOW: None})
    out: Tensor = forward(module, drawn(2, 3, WIDTH, seed=7, dtype=dtype), (turns[0], turns[1]), None)[0]
    return out


def _code(kind: type[nn.Module]) -> Any:
    return inspect.unwrap(kind.forward).__code__


@functools.cache
def _library_of(kind: type[nn.Module]) -> tuple[Any, Any, str | None]:
    """The table and the plain function that a class's forward looks into, and where it finds a sliding window."""
    found, code = inspect.unwrap(kind.forward).__globals__, _code(kind)
    window = "module" if WINDOW in code.co_names else "config" if WINDOW in code.co_consts else None
    return found[ATTENTION_TABLE], found[PLAIN_ATTENTION], window


def qkv_of(attention: nn.Module) -> list[nn.Module]:
    """The three layers that read the input of an attention module."""
    return [attention.get_submodule(name) for name in QKV]


def attention_forward(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Tensor | None = None,
    past_key_values: Any = None, **rest: Any,
) -> Any:  # fmt: skip
    """The forward of attention whose norm and rotation are one kernel; the library's table is asked as before."""
    if not serves(self, hidden_states):
        return library_forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, **rest)
    parts = [self._modules[name](hidden_states) for name in QKV]
    return _attend(self, parts, position_embeddings, attention_mask, past_key_values, rest)


def merged_attention_forward(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Tensor | None = None,
    past_key_values: Any = None, **rest: Any,
) -> Any:  # fmt: skip
    """The same where queries, keys and values come of one product, if their weights lie side by side."""
    given = (hidden_states, position_embeddings, attention_mask, past_key_values)
    return _merged(self, given, rest, F.linear)


def few_rows_attention_forward(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Tensor | None = None,
    past_key_values: Any = None, **rest: Any,
) -> Any:  # fmt: skip
    """The same by our kernel where rows are few."""
    given = (hidden_states, position_embeddings, attention_mask, past_key_values)
    return _merged(self, given, rest, few_rows.linear)


def _merged(self: Any, given: tuple[Any, ...], rest: dict[str, Any], multiply: Multiply) -> Any:
    hidden_states, positions, mask, cache = given
    if not serves(self, hidden_states):
        return library_forward(self, *given, **rest)
    layers = [self._modules[name] for name in QKV]
    whole = merged_linear(layers, hidden_states, multiply)
    if whole is None:
        return attention_forward(self, *given, **rest)
    parts = torch.split(whole, [layer.out_features for layer in layers], dim=-1)
    return _attend(self, parts, positions, mask, cache, rest)


def _attend(
    module: Any, parts: Any, positions: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any, rest: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    shape = parts[0].shape[:-1]
    query, key, value = (part.view(*shape, -1, module.head_dim) for part in parts)
    query, key = _turned(module, query, key, *positions)
    value = value.transpose(1, 2)
    if cache is not None:
        key, value = kept(cache, key, value, module.layer_idx)
    table, plain, window = _library_of(type(module))  # type: ignore[arg-type]
    if window is not None:
        rest[WINDOW] = getattr(module if window == "module" else module.config, WINDOW, None)
    attend = table.get_interface(module.config._attn_implementation, plain)
    out, weights = attend(module, query, key, value, mask, dropout=0.0, scaling=module.scaling, **rest)
    return module.o_proj(out.reshape(*shape, -1).contiguous()), weights


def _turned(module: nn.Module, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    norms = [module._modules.get(name) for name in NORMS]
    if norms[0] is None or norms[1] is None:
        return norm_rotate(query, key, cos, sin)
    if not (is_readable(norms[0]) and is_readable(norms[1])):
        return norm_rotate(norms[0](query), norms[1](key), cos, sin)
    weights = [norm._parameters["weight"] for norm in norms]  # type: ignore[union-attr]
    return norm_rotate(query, key, cos, sin, query_norm=weights[0], key_norm=weights[1], eps=eps_of(norms[0]) or 0.0)
