"""Where heads choose the pages they read, steps choose once a run, and the host audits between runs what they kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.choosing_heads import ChoosingHeads, PageChooser, PageRoom, choosing_heads_of
from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.cache.store import Store
from inference_pio.decoding.flights import IN_FLIGHT
from inference_pio.decoding.page_lists import ENGINE
from inference_pio.decoding.slots import Slots
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary, update_page_summary
from inference_pio.kernels.triton.attention_support import supports_decode, supports_page_summary
from inference_pio.kernels.triton.launch import MOST_BLOCKS, PAGE

LEARNING = "recorded steps that teach"
TOO_MANY = f"recorded steps in room for more than {MOST_BLOCKS * PAGE} tokens"
WIDE = "recorded steps whose attention is spread wide"


@dataclass
class Layer:
    """One attention: `query` [B, H, D] is that of the last step of a run, for the next audit."""

    attention: GroupedAttention
    heads: ChoosingHeads
    chooser: PageChooser
    store: Store
    query: Tensor
    summary: PageSummary
    room: PageRoom


class Group:
    """Layers of one shape, which are audited together: their queries and page summaries lie side by side."""

    def __init__(self, members: Sequence[tuple[GroupedAttention, ChoosingHeads, PageChooser, Store]]) -> None:
        attention, _, chooser, store = members[0]
        self.chooser, self.scale = chooser.joined([other for _, _, other, _ in members[1:]]), attention.scale
        shape = (len(members), store.kind.batch, attention.heads, attention.head_dim)
        self.queries = store.keys.new_zeros(shape)
        self.members = list(members)
        self.grow()

    def grow(self) -> None:
        """Summaries and lists for all the room that the stores have, of nothing yet."""
        like = self.members[0][3].keys
        self.summary = PageSummary.zeros(like[:1].expand(len(self.members) * len(like), -1, -1, -1))
        parts = (self.summary.minimum, self.summary.maximum, self.summary.mean)
        self.layers = []
        for number, (member, query) in enumerate(zip(self.members, self.queries, strict=True)):
            rows = slice(number * len(like), (number + 1) * len(like))
            summary = PageSummary(*(part[rows] for part in parts))
            self.layers.append(Layer(*member, query, summary, member[2].room(query, summary)))

    @property
    def nbytes(self) -> int:
        parts = (self.queries, self.summary.minimum, self.summary.maximum, self.summary.mean)
        return sum(part.nbytes for part in parts) + sum(layer.room.nbytes for layer in self.layers)

    def follow(self, known: int, held: int, lengths: Tensor, starts: Tensor | None) -> None:
        """Let the summaries know of all tokens that are `held`, as `lengths` says too."""
        for layer in self.layers:
            if supports_page_summary(layer.summary, layer.store.keys, lengths, starts):
                from inference_pio.kernels.triton.page_summary import update_page_summary as follow

                follow(layer.summary, layer.store.keys, lengths, held - known, starts)
            else:
                update_page_summary(layer.summary, layer.store.keys, known, held, starts)

    def audit(self, held: int, starts: Tensor | None) -> None:
        """What the last step kept."""
        keys = [layer.store.views(held)[0] for layer in self.layers]
        self.chooser.audit_layers(self.queries, keys, self.summary, scale=self.scale, starts=starts)


class Shown:
    """A share on its way from the device, which is there by the time the host has seen two runs more: it looks then,
    and at no other time, so that nothing hangs on how fast it is."""

    def __init__(self, share: Tensor) -> None:
        self._share, self._runs = share, 0
        self._landed: torch.cuda.Event | None = None
        if share.is_cuda:
            self._share = torch.empty(share.shape, dtype=share.dtype, pin_memory=True).copy_(share, non_blocking=True)
            self._landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._landed.record()

    def look(self) -> float | None:
        """The share; None where it is too early. Asked once before each run."""
        self._runs += 1
        if self._runs <= IN_FLIGHT:
            return None
        if self._landed is not None:
            self._landed.synchronize()
        return float(self._share)


class PageChoices:
    """For the layers of a bucket whose heads choose.

    The first step of a run chooses for all of its tokens. `sparse` says whether the next run reads what is chosen; a
    run that is recorded keeps to what it said then. Page summaries are made on the host's word when sparse runs begin;
    from then on each choice sums up the pages of the tokens since the one before. Where the first run behind an audit
    keeps too much to pay, runs are dense, from the third one after it to the next audit.
    """

    @torch.inference_mode(False)
    def __init__(
        self, members: Iterable[tuple[GroupedAttention, ChoosingHeads, PageChooser, Store]], capacity: int
    ) -> None:  # fmt: skip
        alike: dict[Any, list[tuple[GroupedAttention, ChoosingHeads, PageChooser, Store]]] = {}
        for member in members:
            alike.setdefault((member[0].scale, member[0].heads, member[3].kind), []).append(member)
        self.groups = [Group(some) for some in alike.values()]
        self.capacity = capacity
        self.layers = self._by_module()
        self.dense_below = max(layer.heads.dense_below for layer in self.layers.values())
        self.begin()

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)

    @torch.inference_mode(False)
    def grow(self, capacity: int) -> None:
        """The stores have more room now: so do the summaries, which are made anew."""
        self._count()
        self._known, self.capacity = 0, capacity
        for group in self.groups:
            group.grow()
        self.layers = self._by_module()

    def begin(self) -> None:
        """Another sequence begins."""
        self.sparse = False
        self._known = self._runs = 0
        self._kept: int | Tensor = 0
        self._seen: int | Tensor = 0
        self._dense: dict[str, int] = {}
        self._last: tuple[int, int, Tensor | None] | None = None
        self._asked, self._wide = True, False
        self._shown: Shown | None = None
        for group in self.groups:
            group.chooser.begin()

    def serves(self, module: nn.Module) -> bool:
        """Whether the heads of an attention choose here."""
        return id(module) in self.layers

    def may_choose(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens is long enough for a choice, in room that our kernel chooses among."""
        return tokens >= self.dense_below and self.capacity <= MOST_BLOCKS * PAGE

    def pages(
        self, attention: GroupedAttention, query: Tensor, slots: Slots, starts: Tensor | None, step: int, steps: int
    ) -> PageList | None:
        """The pages that a layer's `query` [B, H, D] reads in a step of a run of `steps`, which is being composed; None
        where it reads all."""
        layer = self.layers.get(id(attention.module))
        if layer is None or not self.may_choose(self.capacity):
            return None
        if step == steps - 1:
            layer.query.copy_(query)
        if not self.sparse:
            return None
        if step == 0:
            layer.chooser.list_pages(
                query, layer.summary, slots.lengths, scale=attention.scale, starts=starts, written=layer.store.keys,
                ahead=steps - 1, room=layer.room,
            )  # fmt: skip
        return layer.room.lists

    @torch.inference_mode(False)
    @torch.no_grad()
    def before_run(self, held: int, steps: int, lengths: Tensor, starts: Tensor | None) -> None:
        """What the host does before a run of `steps` behind `held` tokens, which `lengths` are on the device: count
        what the last one read, audit it if it is time."""
        self._count()
        first = self.groups[0].chooser
        if self._runs and self.may_choose(held) and first.is_due(steps):
            self._follow(held, lengths, starts)
            for group in self.groups:
                group.audit(held, starts)
            self._asked, self._shown, self._wide = True, None, False
        if self._shown is not None and (share := self._shown.look()) is not None:
            self._shown, self._wide = None, share > first.dense_above
        long = self.may_choose(held + 1)
        self.sparse = long and not first.is_learning and not self._wide
        if long and not first.is_learning:
            for group in self.groups:
                group.chooser.steps += steps
        if self.sparse:
            if self._known < held - steps + 1:
                self._follow(held, lengths, starts)
            self._known = held + 1
        else:
            short = held + 1 < self.dense_below
            few = f"fewer than {self.dense_below} tokens" if short else TOO_MANY
            reason = few if not long else WIDE if self._wide else LEARNING
            self._dense[reason] = self._dense.get(reason, 0) + steps
        self._runs += 1
        self._last = (held, steps, starts) if self.sparse else None

    def tell(self, steps: int) -> None:
        """Tell what counts the calls of each layer of so many steps that gave a token; a run may have gone further."""
        self._count()
        left = steps
        for reason, dense in self._dense.items():
            told = min(left, dense)
            left -= told
            for layer in self.layers.values() if told else ():
                layer.heads.counts.left(reason, told)
        if left:
            counts = self.groups[0].layers[0].heads.counts
            counts.served("decode", ENGINE, kept=self._kept, of=self._seen, calls=left * len(self.layers))

    def _count(self) -> None:
        """What the lists of the last run hold, which the next one writes anew."""
        if self._last is None:
            return
        held, steps, starts = self._last
        counts = [layer.room.lists.counts for layer in self.layers.values()]
        kept = torch.stack([each.sum() for each in counts]).sum()
        pages, rows = -(-(held + 1) // PAGE), len(counts[0])
        padding = 0 if starts is None else torch.div(starts, PAGE, rounding_mode="floor").sum()
        seen = sum(each.numel() for each in counts) // rows * (rows * pages - padding)
        self._kept, self._seen = self._kept + kept * steps, self._seen + seen * steps
        if self._asked:
            self._asked, self._shown = False, Shown(kept / seen)
        self._last = None

    def _by_module(self) -> dict[int, Layer]:
        return {id(layer.attention.module): layer for group in self.groups for layer in group.layers}

    def _follow(self, held: int, lengths: Tensor, starts: Tensor | None) -> None:
        for group in self.groups:
            group.follow(self._known, held, lengths, starts)
        self._known = held


def page_choices(
    attentions: Iterable[GroupedAttention | LatentHeads], stores: Iterable[Store], capacity: int, device: torch.device
) -> PageChoices | None:
    """The choices of layers whose heads choose pages; None where none do. On a GPU only where our kernels serve: others
    would ask the host for the length, which a recorded step cannot."""
    found = []
    for attention, store in zip(attentions, stores, strict=True):
        heads = choosing_heads_of(attention.module)
        if heads is None or not isinstance(attention, GroupedAttention):
            continue
        query = store.keys.new_empty(store.kind.batch, attention.heads, attention.head_dim)
        lengths = torch.zeros(1, dtype=torch.int32, device=query.device)
        if device.type == "cuda" and not supports_decode(query, store.keys, store.values, lengths):
            continue
        chooser = heads.page_chooser(attention.heads, attention.key_heads, device)
        if chooser is not None:
            found.append((attention, heads, chooser, store))
    return PageChoices(found, capacity) if found else None
