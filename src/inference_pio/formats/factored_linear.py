"""Linear layers in two factors: into a few numbers, which layers of one input share, and out of them again."""

from __future__ import annotations

import weakref
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.errors import RefusedOnOptimized


class IntoFew(nn.Module):
    """`x` [..., in_features] -> [..., rank]: all inputs by `rest`; or, with an `order` of them, the first `rank` as
    they are and the others by `rest`, added up.

    Where several layers are given one tensor, the first of these `readers` computes and the last lets go. A reader that
    asks again is given a result of its own: it may have been learned from meanwhile.
    """

    order: Tensor | None

    def __init__(self, rest: nn.Linear, order: Tensor | None = None, readers: int = 1) -> None:
        super().__init__()
        self.rank = rest.out_features
        self.in_features = rest.in_features + (self.rank if order is not None else 0)
        self.readers = readers
        self.register_buffer("order", order)
        self.rest = rest
        self._held = _Held()

    def forward(self, x: Tensor, reader: nn.Module | None = None) -> Tensor:
        if self.readers < 2 or torch.compiler.is_compiling():  # a compiler finds by itself what is computed twice
            return self._of(x)
        state = _state_of(x, self.rest._parameters.get("weight"))
        made = self._held.take(x, state, id(reader), self.readers)
        return self._held.keep(x, state, id(reader), self._of(x)) if made is None else made

    def _of(self, x: Tensor) -> Tensor:
        order = self._buffers["order"]
        if order is None:
            return self.rest(x)  # type: ignore[no-any-return]
        others: Tensor = self.rest(x.index_select(-1, order[self.rank :]))
        return others + x.index_select(-1, order[: self.rank])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, rank={self.rank}, readers={self.readers}"


class FactoredLinear(nn.Module):
    """`input` [..., in_features] -> [..., out_features], through fewer numbers than either; a bias is `out_of`'s."""

    def __init__(self, into: IntoFew, out_of: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = into.in_features, out_of.out_features
        self.into, self.out_of = into, out_of

    def forward(self, input: Tensor) -> Tensor:  # the name by which a linear layer may be given it
        made: Tensor = self.out_of(self.into(input, self))
        return made

    @torch.no_grad()
    def product(self) -> Tensor:
        """The one weight that both factors stand for, [out_features, in_features] in float32."""
        identity = torch.eye(self.in_features, device=_any_tensor(self).device)
        rest, order = _weight(self.into.rest), self.into.order
        into = F.linear(identity, rest) if order is None else identity[:, order[: self.into.rank]]
        into = into if order is None else into + F.linear(identity[:, order[self.into.rank :]], rest)
        return F.linear(into, _weight(self.out_of)).T

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "FactoredLinear has no 'weight': it is in two factors. product() gives the weight that they stand for."
            )
        return super().__getattr__(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise RefusedOnOptimized(
                f"{prefix}weight: this layer is in two factors and cannot take an original weight. "
                "Call reset_model_optimizations(model) before loading original weights."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _Held:
    """What was made of the last input, for those that are still to ask for it; copies start with nothing.

    It is let go with the input, whether all have asked or not.
    """

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], Any, Tensor, tuple[int, ...]] | None = None

    def take(self, x: Tensor, state: Any, reader: int, readers: int) -> Tensor | None:
        last = self._last
        if last is None or last[0]() is not x or last[1] != state or reader in last[3]:
            return None
        self._last = (*last[:3], (*last[3], reader)) if len(last[3]) + 1 < readers else None
        return last[2]

    def keep(self, x: Tensor, state: Any, reader: int, made: Tensor) -> Tensor:
        self._last = (weakref.ref(x, self._let_go), state, made, (reader,))
        return made

    def _let_go(self, gone: weakref.ref[Tensor]) -> None:
        last = self._last
        if last is not None and last[0] is gone:
            self._last = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def _state_of(x: Tensor, weight: Tensor | None) -> tuple[int, int, bool, bool]:
    """What must be the same for a result to be the same: nothing was written to `x` or to the weight, and gradients go
    as they went."""
    return _version(x), _version(weight), torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _weight(layer: nn.Module) -> Tensor:
    """A layer's weight in float32, whatever form it is kept in."""
    dequantize = getattr(layer, "dequantize", None)
    found: Any = dequantize() if dequantize is not None else layer.weight
    exact: Tensor = found.float()
    return exact


def _any_tensor(module: nn.Module) -> Tensor:
    return next(iter([*module.parameters(), *module.buffers()]))
