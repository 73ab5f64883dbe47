"""Where channels can be scaled at no cost: what makes them is divided by the scale, what reads them multiplied.

Found in one forward, by who is given a norm's output; whether a fold holds on a model is told by `fold_check`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.roles import roles_of
from inference_pio.calibration.expert_inputs import DOWN, GATE_UP
from inference_pio.calibration.forward import forward
from inference_pio.calibration.rounding import layer_of
from inference_pio.calibration.source import Batch

NORM, ROUTER = "norm", "router"
MAKERS = {"down_proj": "up_proj", "o_proj": "v_proj"}
"""Layers that read channels which the layer of that name beside them makes, row by row."""


@dataclass(frozen=True)
class Fold:
    """Channels that `maker` makes and `readers` read; `left` says why they are not scaled.

    `maker` is a norm, or a layer whose rows they are. Of fused experts, which make and read channels of their own, it
    is the only reader. `routers` read them too, and keep full weights. What is made in heads of `head` channels is read
    by `repeats` heads each, one after another; `head` is 0 where a norm makes them.
    """

    maker: str
    readers: tuple[str, ...]
    routers: tuple[str, ...] = ()
    head: int = 0
    repeats: int = 1
    left: str | None = None

    @property
    def name(self) -> str:
        return f"{self.maker} -> {', '.join(reader.rpartition('.')[2] for reader in self.readers)}"

    @property
    def reads_its_own(self) -> bool:
        return self.readers == (self.maker,)

    def channels(self, model: nn.Module) -> torch.Size:
        """The shape of its scales: one a channel, of experts [E, I]."""
        parameters = model.get_submodule(self.readers[0])._parameters
        if self.reads_its_own:
            shape = parameters[DOWN].shape  # type: ignore[union-attr]
            return torch.Size((shape[0], shape[2]))
        weight = parameters.get(GATE_UP, parameters.get("weight"))
        return weight.shape[-1:]  # type: ignore[union-attr]

    def alike(self, values: Tensor) -> Tensor:
        """Values of channels [K], one for all that read the same channel: their mean."""
        if not self.head:
            return values
        heads = values.view(-1, self.repeats, self.head)
        return heads.mean(1, keepdim=True).expand_as(heads).flatten()


def find_folds(model: nn.Module, layers: Collection[str], batch: Batch) -> list[Fold]:
    """The folds whose readers are among `layers`, in the model's order. Runs one forward; nothing is edited."""
    roles = roles_of(model)
    norms = [_norm_fold(model, norm, readers, layers, roles) for norm, readers in _readers(model, batch, roles).items()]
    found = [fold for fold in norms if set(fold.readers) & set(layers)]
    return [_within_a_layer(fold) for fold in (*found, *_row_folds(model, layers))]


def _within_a_layer(fold: Fold) -> Fold:
    """What is kept or not layer by layer must not reach over two of them."""
    others = [path for path in fold.readers if layer_of(path) != layer_of(fold.maker)]
    if fold.left or not others:
        return fold
    return replace(fold, left=f"it makes channels for {layer_of(others[0])}, outside of its own layer")


def _readers(model: nn.Module, batch: Batch, roles: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """What each norm's output is given to, whole and unchanged, by the path of the norm."""
    made: list[tuple[str, Tensor]] = []  # held to the end, so that no other tensor comes to lie where they do
    readers: dict[str, dict[str, None]] = {}

    def remember(path: str) -> Any:
        return lambda module, args, result: made.append((path, result)) if isinstance(result, Tensor) else None

    def look(path: str) -> Any:
        def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for given in (*args, *kwargs.values()):
                for norm, out in made:
                    if isinstance(given, Tensor) and _lies_there(given, out):
                        readers.setdefault(norm, {})[path] = None

        return compare

    handles = []
    for path, role in roles.items():
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(look(path), with_kwargs=True))
        if role == NORM:
            handles.append(module.register_forward_hook(remember(path)))
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {norm: tuple(paths) for norm, paths in readers.items()}


def _lies_there(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel() and one.dtype is other.dtype


def _norm_fold(
    model: nn.Module, norm: str, readers: tuple[str, ...], layers: Collection[str], roles: Mapping[str, str]
) -> Fold:
    compressed = tuple(path for path in readers if path in layers)
    routers = tuple(path for path in readers if roles[path] == ROUTER and path not in layers)
    others = [path for path in readers if path not in compressed and path not in routers]
    reason = _why_no_norm(model.get_submodule(norm)) or next(
        (f"their reader {path.rpartition('.')[2]} is kept as it is" for path in others), None
    )
    return Fold(norm, compressed, routers, left=reason)


def _why_no_norm(norm: nn.Module) -> str | None:
    if [tuple(norm._parameters), len(norm._modules)] != [("weight",), 0]:
        return "it is more than a norm with a weight"
    if any(value for key, value in vars(norm).items() if "_hooks" in key and not key.startswith("_is")):
        return "it carries hooks of somebody else"
    return "its forward is overridden" if "forward" in vars(norm) else None


def _row_folds(model: nn.Module, layers: Collection[str]) -> Iterator[Fold]:
    """Gated units: up makes what down reads. Attention: values pass through it channel by channel."""
    for path in layers:
        above, _, name = path.rpartition(".")
        module: Any = model.get_submodule(path)
        if DOWN in module._parameters:
            yield Fold(path, (path,))
        elif name in MAKERS:
            maker = f"{above}.{MAKERS[name]}"
            if maker not in layers:
                yield Fold(maker, (path,), left=f"no {MAKERS[name]} that is compressed makes its channels")
            else:
                yield _rows_of(model, maker, path)


def _rows_of(model: nn.Module, maker: str, reader: str) -> Fold:
    made_by, read_by = (model.get_submodule(path) for path in (maker, reader))
    made, read = made_by._parameters["weight"].shape[0], read_by._parameters["weight"].shape[1]  # type: ignore[union-attr]
    head = made if made == read else getattr(model.get_submodule(reader.rpartition(".")[0]), "head_dim", 0)
    if not isinstance(head, int) or not head or read % made or made % head:
        return Fold(maker, (reader,), left=f"{made} channels are made and {read} read, in heads that are not known")
    return Fold(maker, (reader,), head=head, repeats=read // made)
