"""What compressed modules share: codes and scales that keep their dtype, and checkpoints of the original refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Self

from torch import Tensor, nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.formats.weight_format import WeightFormat
from inference_pio.kernels.dynamic_linear import dynamic_linear, serves_dynamic
from inference_pio.undo.parked import without_base


class CompressedModule(WeightFormat, nn.Module):
    """A module of codes (`*_<format>`) with scales (`*_scale`): `half()` and `to(dtype)` never round either.

    In memory codes lie as their device reads them; `state_dict()`, pickles and saved models hold them as every machine
    does.
    """

    original_weights: tuple[str, ...] = ()
    """The names under which the original module kept its weights."""
    codes_activations: bool = False
    """Whether activations are coded too, token by token, in products of many of them."""
    table_of: CompressedModule | None = None
    """The module that has the codes of this one, where it has none of its own."""

    def __getattr__(self, name: str) -> Any:
        if name in type(self).original_weights:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}: its weights are {self.told}. "
                "dequantize() gives the weights that they stand for, reset_model_optimizations(model) the original."
            )
        return super().__getattr__(name)

    def hold(self, name: str, codes: Tensor, *beside: Tensor) -> None:
        """Keep codes of one weight and what stands beside them."""
        self.register_buffer(f"{name}_{self.format}", without_base(self.settled(codes)))
        for part, tensor in zip(self.beside, beside, strict=True):
            self.register_buffer(f"{name}_{part}", without_base(tensor))

    def held(self, name: str) -> tuple[Tensor, ...]:
        """Codes of one weight and what stands beside them: scales, in most formats."""
        holder = self if self.table_of is None else self.table_of
        buffers = holder._buffers  # a look-up here costs 0.1 us, by attribute 0.6; a token passes hundreds of layers
        return buffers[f"{name}_{self.format}"], buffers[f"{name}_scale"]  # type: ignore[return-value]

    @property
    def holder(self) -> CompressedModule:
        """The module in which its codes lie: itself, or the one whose table it reads."""
        return self if self.table_of is None else self.table_of

    def multiply(self, x: Tensor, codes: Tensor, *beside: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` [..., K] times one matrix of codes, with what stands beside it: [..., N]."""
        if self.codes_activations and serves_dynamic(x, codes):
            return dynamic_linear(x, codes, beside[0], bias)
        return self.product(x, codes, *beside, bias)

    def codes(self) -> Iterator[tuple[str, Tensor]]:
        """The names and values of the buffers that hold codes."""
        for name, buffer in self._buffers.items():
            if buffer is not None and name.endswith(f"_{self.format}"):
                yield name, buffer

    def _sized_by_data(self) -> list[str]:
        ends = tuple(f"_{part}" for part in self.sized_by_data)
        return [name for name in self._buffers if ends and name.endswith(ends)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before, lying = dict(self._buffers), dict(self.codes())
        for name, codes in lying.items():
            before[name] = self._buffers[name] = self.portable(codes)
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        except BaseException:  # codes must not stay as no device reads them
            for name, codes in lying.items():
                if self._buffers[name] is before[name]:
                    self._buffers[name] = codes
            raise
        for name, old in before.items():
            moved = self._buffers[name]
            if old is not None and moved is not None and moved.dtype is not old.dtype:
                self._buffers[name] = old.to(moved.device)
        for name, codes in lying.items():
            moved = self._buffers[name]
            if (
                moved is not None
            ):  # where nothing was done to codes that lie as the CPU wants them, they are what they were
                untouched = moved is before[name] and moved is not codes
                self._buffers[name] = codes if untouched else self.settled(moved)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        for name, codes in self.codes():
            destination[prefix + name] = self.portable(codes)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.original_weights:
            if prefix + name in state_dict:
                raise RefusedOnOptimized(
                    f"{prefix}{name}: this layer is compressed to {self.format} and cannot take original weights. "
                    "Call reset_model_optimizations(model) before loading original weights."
                )
        for name in self._sized_by_data():
            if (given := state_dict.get(prefix + name)) is not None:
                self._buffers[name] = self._buffers[name].new_empty(given.shape)  # type: ignore[union-attr]
        for name, lying in self.codes():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and (self.portable(lying) is not lying or self.portable(given) is not given):
                state_dict[prefix + name] = self.settled(self.portable(given).to(lying.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        portable = {name: self.portable(codes) for name, codes in self.codes()}
        return {**self.__dict__, "_buffers": {**self._buffers, **portable}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for name, codes in list(self.codes()):
            self._buffers[name] = self.settled(codes)


def portable_tensor(owner: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A tensor of a module as every machine holds it: codes in their portable layout, all others as they are."""
    if isinstance(owner, CompressedModule) and name in dict(owner.codes()):
        return owner.portable(tensor)
    return tensor


def is_sized_by_data(owner: nn.Module, name: str) -> bool:
    """Whether a module's buffer holds as much as its weights asked for, which a skeleton cannot know."""
    return isinstance(owner, CompressedModule) and name in owner._sized_by_data()
