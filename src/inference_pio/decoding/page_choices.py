"""Where heads choose the pages they read, steps choose once a run, and the host audits between runs what they kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference_pio.anatomy.choosing_heads import ChoosingHeads, PageChooser, choosing_heads_of
from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.cache.store import Store
from inference_pio.decoding.page_lists import ENGINE
from inference_pio.decoding.slots import Slots
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary, update_page_summary
from inference_pio.kernels.triton.launch import MOST_BLOCKS, PAGE

LEARNING = "recorded steps that teach"
TOO_WIDE = f"recorded steps in room for more than {MOST_BLOCKS * PAGE} tokens"


@dataclass
class Layer:
    """One attention: `query` [B, H, D] is that of the last step of a run, for the next audit."""

    attention: GroupedAttention
    heads: ChoosingHeads
    chooser: PageChooser
    store: Store
    summary: PageSummary
    query: Tensor
    lists: PageList | None = None


class PageChoices:
    """For the layers of a bucket whose heads choose.

    The first step of a run chooses for all of its tokens. `sparse` says whether the next run reads what is chosen; a
    run that is recorded keeps to what it said then. Page summaries are made on the host's word when sparse runs begin;
    from then on each choice sums up the pages of the tokens since the one before.
    """

    @torch.inference_mode(False)
    def __init__(self, attentions: Iterable[tuple[GroupedAttention, ChoosingHeads, PageChooser, Store]]) -> None:
        self.layers = {
            id(attention.module): Layer(
                attention, heads, chooser, store, PageSummary.zeros(store.keys[:, :0]),
                store.keys.new_zeros(store.kind.batch, attention.heads, attention.head_dim),
            )
            for attention, heads, chooser, store in attentions
        }  # fmt: skip
        self.dense_below = max(layer.heads.dense_below for layer in self.layers.values())
        self.sparse = self._wide = False
        self._known = self._runs = 0
        self._dense: dict[str, int] = {}
        self._kept: int | Tensor = 0
        self._seen = 0
        self._last: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        return sum(
            tensor.nbytes
            for layer in self.layers.values()
            for tensor in (layer.summary.minimum, layer.summary.maximum, layer.summary.mean, layer.query)
        )

    @torch.inference_mode(False)
    def grow(self, capacity: int) -> None:
        """The stores have more room now: so do the summaries, which are made anew."""
        self._known, self._wide = 0, capacity > MOST_BLOCKS * PAGE
        for layer in self.layers.values():
            layer.summary, layer.lists = PageSummary.zeros(layer.store.keys), None

    def begin(self) -> None:
        """Another sequence begins."""
        self._known = self._runs = self._seen = 0
        self._kept, self._last, self._dense, self.sparse = 0, None, {}, False
        for layer in self.layers.values():
            layer.chooser.begin()

    def serves(self, module: nn.Module) -> bool:
        """Whether the heads of an attention choose here."""
        return id(module) in self.layers

    def may_choose(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens is long enough for a choice, in room that our kernel chooses among."""
        return tokens >= self.dense_below and not self._wide

    def pages(
        self, attention: GroupedAttention, query: Tensor, slots: Slots, starts: Tensor | None, step: int, steps: int
    ) -> PageList | None:
        """The pages that a layer's `query` [B, H, D] reads in a step of a run of `steps`, which is being composed; None
        where it reads all."""
        layer = self.layers.get(id(attention.module))
        if layer is None:
            return None
        if step == steps - 1:
            layer.query.copy_(query)
        if not self.sparse:
            return None
        if step == 0:
            layer.lists = layer.chooser.list_pages(
                query, layer.summary, slots.lengths, scale=attention.scale, starts=starts, written=layer.store.keys,
                ahead=steps - 1,
            )  # fmt: skip
        return layer.lists

    @torch.inference_mode(False)
    @torch.no_grad()
    def before_run(self, held: int, steps: int, starts: Tensor | None) -> None:
        """What the host does before a run of `steps` behind `held` tokens: count the last one, audit if it is time."""
        self._count()
        choosers = [layer.chooser for layer in self.layers.values()]
        if self._runs and self.may_choose(held) and choosers[0].is_due(steps):
            self._follow(held, starts)
            for layer in self.layers.values():
                keys = layer.store.views(held)[0]
                layer.chooser.audit(
                    layer.query[:, :, None], keys, layer.summary, scale=layer.attention.scale, starts=starts
                )
        long = self.may_choose(held + 1)
        self.sparse = long and not choosers[0].is_learning
        if self.sparse:
            if self._known < held - steps + 1:
                self._follow(held, starts)
            self._known = held + 1
            for chooser in choosers:
                chooser.steps += steps
        else:
            few = f"fewer than {self.dense_below} tokens"
            reason = LEARNING if long else TOO_WIDE if self._wide else few
            self._dense[reason] = self._dense.get(reason, 0) + steps
        self._runs += 1
        self._last = (held, steps) if self.sparse else None

    def tell(self, steps: int) -> None:
        """Tell what counts the calls of each layer of so many steps that gave a token; a run may have gone further."""
        self._count()
        left = steps
        for reason, dense in self._dense.items():
            told = min(left, dense)
            left -= told
            for layer in self.layers.values():
                layer.heads.counts.left(reason, told)
        if left and self.layers:
            counts = next(iter(self.layers.values())).heads.counts
            counts.served("decode", ENGINE, kept=self._kept, of=self._seen, calls=left * len(self.layers))

    def _count(self) -> None:
        """What the lists of the last run hold, which the next one writes anew."""
        if self._last is None:
            return
        held, steps = self._last
        for layer in self.layers.values():
            if layer.lists is not None:
                counts = layer.lists.counts
                self._kept = self._kept + counts.sum() * steps
                self._seen += counts.numel() * -(-(held + 1) // PAGE) * steps
        self._last = None

    def _follow(self, held: int, starts: Tensor | None) -> None:
        """Let the summaries know of all that is held."""
        for layer in self.layers.values():
            update_page_summary(layer.summary, layer.store.keys, self._known, held, starts)
        self._known = held


def page_choices(
    attentions: Iterable[GroupedAttention | LatentHeads], stores: Iterable[Store], capacity: int, device: torch.device
) -> PageChoices | None:
    """The choices of layers whose heads choose pages; None where none do."""
    found = []
    for attention, store in zip(attentions, stores, strict=True):
        heads = choosing_heads_of(attention.module)
        if heads is None or not isinstance(attention, GroupedAttention):
            continue
        chooser = heads.page_chooser(attention.heads, attention.key_heads, device)
        if chooser is not None:
            found.append((attention, heads, chooser, store))
    if not found:
        return None
    made = PageChoices(found)
    made.grow(capacity)
    return made
