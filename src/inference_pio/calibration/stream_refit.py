"""Linear layers that write to the stream, fitted again behind what is gone: so that the stream comes to what it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder_mlp import DOWN
from inference_pio.anatomy.latent_attention import RESULT
from inference_pio.anatomy.parts import carries_hooks, within
from inference_pio.anatomy.removable_layers import StackLayer
from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from inference_pio.calibration.forward import Progress, forward
from inference_pio.calibration.output_pass import some_batches
from inference_pio.calibration.removal import first_result, stream_in
from inference_pio.calibration.source import Batch, CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.calibration.twins import twin_of
from inference_pio.kernels.linear_fit import AddedMap

TOKENS = 16384
Changed = Callable[[], AbstractContextManager[Any]]
"""Within this, the model computes without what is to go."""


Part = Literal["attention", "mlp"]


class _Reached(Exception):
    """What is watched has been seen: the rest of the forward says nothing that is asked."""


@dataclass(frozen=True)
class Writer:
    """The linear layer at `path` ends the attention or the MLP of a layer, whose result it adds to the stream."""

    path: str
    layer: StackLayer
    part: Part


@dataclass
class _Look:
    """What one forward shows: what a writer is given, what the layer is, and the stream behind its part."""

    given: Tensor | None = None
    before: Tensor | None = None
    stream: Tensor | None = None

    def note_given(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self.given = args[0] if args else kwargs["input"]

    def watch_layer(self, layer: nn.Module, handles: list[Any]) -> None:
        """The stream behind the whole layer, which ends the forward."""

        def note(module: nn.Module, args: Any, result: Any) -> None:
            self.stream = first_result(result)
            raise _Reached

        handles += [self._entry(layer), layer.register_forward_hook(note)]

    def watch_attention(self, layer: StackLayer, attention: nn.Module, handles: list[Any]) -> None:
        """The stream behind a layer's attention, which ends the forward."""

        def note(module: nn.Module, args: Any, result: Any) -> None:
            if self.before is not None:
                self.stream = self.before + first_result(result)
            raise _Reached

        handles += [self._entry(layer.module), attention.register_forward_hook(note)]

    def _entry(self, layer: nn.Module) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.before = stream_in(args, kwargs)

        return layer.register_forward_pre_hook(enter, with_kwargs=True)


@torch.no_grad()
def refit_stream(
    model: nn.Module, layers: Sequence[StackLayer], gone: Collection[str], changed: Changed,
    source: CalibrationSource, *, narrowed: Mapping[str, nn.Module] | None = None,
    meant: Callable[[str], bool] = lambda path: True, tokens: int = TOKENS, progress: Progress | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Weights by path, of all writers behind the first of what is `gone` (paths of layers and attentions), one after
    another in the model's order, each to make up for what the stream lacks behind it. `narrowed` modules, by their
    paths, stand in for the model's where it is `changed`; writers within them get their new weights at once. Others are
    those that are `meant`, by their paths.

    Each takes two forwards over `tokens` tokens, which end where it stands; nothing of the model is edited. Layers
    that do not add their parts to the stream as they are have no writers.
    """
    batches, others = some_batches(source, tokens), narrowed or {}
    behind = _writers(model, layers, [*gone, *others], gone, batches[0])
    writers = [writer for writer in behind if _holder(others, writer.path) is not None or meant(writer.path)]
    found: dict[str, Tensor] = {}
    for number, writer in enumerate(writers):
        fit, rows = AddedMap(), 0
        beside = {path: weight for path, weight in found.items() if _holder(others, path) is None}
        twins = {path: twin_of(model.get_submodule(path), {"weight": weight}) for path, weight in beside.items()}
        end: Any = _module_at(model, others, writer.path)
        for batch in batches:
            wanted = _look(model, writer, model.get_submodule(writer.path), batch).stream
            with changed(), stood_in(model, twins):
                seen = _look(model, writer, end, batch)
            if wanted is not None and seen.stream is not None and seen.given is not None:
                fit.add(seen.given.flatten(0, -2), (wanted - seen.stream).flatten(0, -2))
                rows += seen.given.flatten(0, -2).shape[0]
        if rows:
            weight = found[writer.path] = (end.weight.double() + fit.solve()).to(end.weight.dtype)
            if _holder(others, writer.path) is not None:
                end._parameters["weight"] = nn.Parameter(weight, requires_grad=end.weight.requires_grad)
        if progress:
            progress("refit", (number + 1) / len(writers))
    return found


def _holder(others: Mapping[str, nn.Module], path: str) -> str | None:
    """The path of the other module that a path lies in."""
    return next((above for above in others if within(path, above)), None)


def _module_at(model: nn.Module, others: Mapping[str, nn.Module], path: str) -> nn.Module:
    above = _holder(others, path)
    return model.get_submodule(path) if above is None else others[above].get_submodule(path[len(above) + 1 :])


def _writers(
    model: nn.Module, layers: Sequence[StackLayer], touched: Collection[str], gone: Collection[str], batch: Batch
) -> Iterator[Writer]:  # fmt: skip
    shared = shared_weights(model)
    behind = [layer.number for layer in layers if any(within(path, layer.path) for path in touched)]
    first = min(behind, default=len(layers))
    for layer in layers[first:]:
        for part, path in ({} if layer.path in gone else _ends(model, layer, batch)).items():
            early = part == "attention" and layer.number == first  # nothing lacks before what is touched
            if (
                not early
                and not any(within(path, one) for one in gone)
                and _is_plain(model.get_submodule(path), shared)
            ):
                yield Writer(path, layer, part)


def _is_plain(module: nn.Module, shared: set[int]) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module) or hasattr(module, "parametrizations"):
        return False
    wide = module.weight.is_floating_point() and module.weight.element_size() > 1
    return wide and not carries_hooks(module) and why_shared([module.weight], shared) is None


def _ends(model: nn.Module, layer: StackLayer, batch: Batch) -> dict[Part, str]:
    """The last linear layers of attention and MLP, where the layer adds what both give to the stream as it is."""
    children = dict(layer.module.named_children())
    ends = {name: f"{name}.{RESULT if name == layer.attention else DOWN}" for name in children}
    ends = {name: end for name, end in ends.items() if end.partition(".")[2] in children[name]._modules}
    given: dict[str, Tensor] = {}

    def noting(name: str) -> Any:
        def note(module: nn.Module, args: Any, result: Any) -> None:
            if isinstance(found := first_result(result), Tensor):
                given[name] = found

        return note

    watched = {**children, **{end: layer.module.get_submodule(end) for end in ends.values()}}
    handles = [module.register_forward_hook(noting(name)) for name, module in watched.items()]
    seen = _Look()
    seen.watch_layer(layer.module, handles)
    _until_reached(model, batch, handles)
    if seen.before is None or seen.stream is None:
        return {}
    whole = {name for name in children if name in given and given[name].shape == seen.stream.shape == seen.before.shape}
    if layer.attention not in whole:
        return {}
    behind = seen.before + given[layer.attention]
    others = [name for name in children if name != layer.attention and name in whole]
    mlps = [name for name in others if torch.equal(behind + given[name], seen.stream)]
    parts: list[tuple[Part, str]] = [("attention", layer.attention), *(("mlp", name) for name in mlps[:1])]
    return {
        part: f"{layer.path}.{ends[name]}"
        for part, name in (parts if mlps else ())
        if name in ends and ends[name] in given and torch.equal(given[ends[name]], given[name])
    }


def _look(model: nn.Module, writer: Writer, end: nn.Module, batch: Batch) -> _Look:
    """What the writer is given, which is `end` now, and the stream behind its part of the layer."""
    seen, handles = _Look(), []
    handles.append(end.register_forward_pre_hook(seen.note_given, with_kwargs=True))
    if writer.part == "attention":
        seen.watch_attention(writer.layer, model.get_submodule(writer.layer.attention_path), handles)
    else:
        seen.watch_layer(writer.layer.module, handles)
    _until_reached(model, batch, handles)
    return seen


def _until_reached(model: nn.Module, batch: Batch, handles: Sequence[Any]) -> None:
    try:
        forward(model, batch)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
