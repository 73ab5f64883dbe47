"""`norm_folding`: a norm's weight moves into the layers that read the norm, where their numbers are fine enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference_pio.anatomy.call_guards import is_foreign
from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.decoder import Attention, Decoder, Mlp, decoder_of
from inference_pio.anatomy.decoder_attention import GroupedAttention
from inference_pio.anatomy.decoder_mlp import GatedMlp
from inference_pio.anatomy.fused_norm import why_no_rms_norm
from inference_pio.anatomy.parts import is_experts
from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from inference_pio.anatomy.walk import is_linear, path_of
from inference_pio.contract.site import Site
from inference_pio.surgery.edit import Edit, Places
from inference_pio.undo.journal import Journal

FINE = (torch.float32, torch.float64)
FIRST_OF_EXPERTS = "gate_up_proj"
READERS = "readers"


@dataclass(frozen=True)
class Fold:
    """A norm, and every module that reads what it gives, a `routing` one among them; `through` hands it to them."""

    norm: nn.Module
    readers: tuple[nn.Module, ...]
    through: nn.Module | None = None
    routing: bool = False


class NormFolding(Edit):
    """Norms go on scaling rows to one; their weights are ones."""

    name = "norm_folding"
    exactness = "algebraic"

    def sites(self, model: nn.Module) -> Iterable[Site]:
        decoder = decoder_of(model)
        if isinstance(decoder, str):
            return
        shared, chosen = shared_weights(model), Chosen(self.asked.targets, self.asked.skip)
        listed = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        for fold in _folds(decoder):
            path = path_of(model, fold.norm)
            skip = chosen.why_not(path, "norm") or _why_not(fold, shared) or _why_seen(fold, listed)
            yield Site(path, "norm", skip=skip, whole=False)

    def decide(self, model: nn.Module, paths: Iterable[str], others: Mapping[str, Places]) -> Places:
        """Which modules read each norm: where these go, a norm that stays keeps its weight for what comes instead."""
        decoder, meant = decoder_of(model), set(paths)
        if isinstance(decoder, str):
            return {}
        folds = {path_of(model, fold.norm): fold for fold in _folds(decoder)}
        return {
            path: {READERS: [path_of(model, reader) for reader in fold.readers]}
            for path, fold in folds.items()
            if path in meant
        }

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        decoder = decoder_of(model)
        assert not isinstance(decoder, str)  # its sites are of a decoder in its parts
        for fold in list(_folds(decoder)):
            if path_of(model, fold.norm) in places:
                for module in (*fold.readers, *((fold.through,) if fold.through is not None else ())):
                    journal.watch(path_of(model, module), whole=False)  # hooks on it would have kept the norm as it is
                _fold(journal, fold)
        told = f"the weights of {len(places)} norms lie in the layers that read them."
        if path_of(model, decoder.norm.module) in places:
            told += " The last hidden state is that of a norm without a weight: the head has it."
        return [told]


def _folds(decoder: Decoder) -> Iterator[Fold]:
    for layer in decoder.layers:
        yield Fold(layer.attention_norm.module, _readers_in_attention(layer.attention), layer.attention.module)
        if not isinstance(layer.attention, GroupedAttention):
            if layer.attention.query_into_norm is not None:
                yield Fold(layer.attention.query_into_norm.module, (layer.attention.query_out_of,))
            yield Fold(layer.attention.latent_norm.module, (layer.attention.out_of_latent,))
        routing = not isinstance(layer.mlp, GatedMlp)
        yield Fold(layer.mlp_norm.module, _readers_in_mlp(layer.mlp), layer.mlp.module, routing)
    yield Fold(decoder.norm.module, (decoder.head,))


def _readers_in_attention(attention: Attention) -> tuple[nn.Module, ...]:
    if isinstance(attention, GroupedAttention):
        return attention.query, attention.key, attention.value
    return attention.query_into or attention.query_out_of, attention.into_latent


def _readers_in_mlp(mlp: Mlp) -> tuple[nn.Module, ...]:
    if isinstance(mlp, GatedMlp):
        return mlp.gate, mlp.up
    return (mlp.router, mlp.experts, *(_readers_in_mlp(mlp.shared) if mlp.shared is not None else ()))


def _fold(journal: Journal, fold: Fold) -> None:
    scale: Tensor = fold.norm.weight.detach()  # type: ignore[union-attr, assignment, operator]
    for reader in fold.readers:
        name, weight = _read_by(reader)
        journal.set(reader, name, nn.Parameter(weight.detach() * scale, requires_grad=weight.requires_grad))
    journal.set(fold.norm, "weight", nn.Parameter(torch.ones_like(scale), requires_grad=fold.norm.weight.requires_grad))  # type: ignore[union-attr, arg-type]


def _why_seen(fold: Fold, listed: Counter[int]) -> str | None:
    """Who else than the readers takes part in what a norm gives, if anybody does."""
    if any(listed[id(module)] > 1 for module in (fold.norm, *fold.readers)):
        return "it, or a layer that reads it, stands at several places"
    takers = [module for module in (*fold.readers, fold.through) if module is not None]
    if fold.norm._forward_hooks or any(module._forward_pre_hooks for module in takers):
        return "hooks of somebody else see what it gives"
    if fold.through is not None and is_foreign(vars(fold.through).get("forward")):
        return "the forward of what hands it on is overridden"
    return None


def _read_by(reader: nn.Module) -> tuple[str, nn.Parameter]:
    """The weight [..., width of the norm] by which a module reads."""
    name = FIRST_OF_EXPERTS if is_experts(reader) else "weight"
    return name, reader.get_parameter(name)


def _why_not(fold: Fold, shared: set[int]) -> str | None:
    if reason := why_no_rms_norm(fold.norm):
        return reason
    scale: Tensor = fold.norm.weight  # type: ignore[assignment]
    if fold.routing and scale.dtype is torch.float64:  # measured: logits of glm4_moe would move by 1.4e-7
        return "a router reads it, and computes in float32: folding would round what the router multiplies with"
    for reader in fold.readers:
        if "forward" in vars(reader) or hasattr(reader, "parametrizations"):
            return "the forward or the weight of a layer that reads it is overridden"
        known = dict(reader.named_parameters(recurse=False))
        name = FIRST_OF_EXPERTS if is_experts(reader) else "weight"
        if name not in known or known[name].shape[-1] != len(scale):
            return "a layer that reads it is stored in a way that is not known here"
        if isinstance(reader, nn.Linear) and not is_linear(reader):
            return f"a layer that reads it is a {type(reader).__name__}, and no plain Linear"
        if known[name].dtype not in FINE or known[name].dtype != scale.dtype:
            kind = str(known[name].dtype).removeprefix("torch.")
            return f"the weights that read it are {kind}: folding would round them"
        if reason := why_shared([known[name]], shared):
            return f"a layer that reads it is tied: {reason}"
    return None
