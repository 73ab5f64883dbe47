"""Room for a batch of so many rows: cache, slots and tables of angles, kept from call to call at the same addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from inference_pio.anatomy.choosing_heads import choosing_heads_of
from inference_pio.anatomy.decoder import Decoder
from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.anatomy.first_tokens import kept
from inference_pio.cache import PagedCache
from inference_pio.cache.store import Store, bucket
from inference_pio.decoding.page_choices import PageChoices, page_choices
from inference_pio.decoding.page_lists import PageLists, fixed_heads_of
from inference_pio.decoding.prompt_runners import PromptRunners
from inference_pio.decoding.runner import Runner
from inference_pio.decoding.slots import Slots
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.page_list import PageList

KEPT_RUNNERS = 8
"""Recorded steps that a bucket keeps: one for each way of choosing tokens that was asked for last."""


class Bucket:
    """For `batch` rows; `capacity` tokens each, more by `grow`, which moves what is held and drops recorded steps."""

    def __init__(self, model: nn.Module, decoder: Decoder, batch: int, capacity: int, ahead: int) -> None:
        self.batch, self.capacity, self.decoder = batch, bucket(capacity), decoder
        self.device = next(model.parameters()).device
        self.cache = PagedCache.of(model, capacity=self.capacity)
        self.slots = Slots(batch, ahead, self.device)
        self.runners: dict[Any, Runner] = {}
        self.prompts = PromptRunners()
        self.padded, self.prepared = False, False
        self.pages: PageLists | None = None
        self.choices: PageChoices | None = None
        self._follows: tuple[bool, bool] | None = None
        """Whether heads follow a fixed pattern, and whether some choose: an engine that sees that change makes another
        bucket."""
        self.step, self.steps = 0, 1
        """Which step of a run is being composed, and how many it has."""
        self._logits: Tensor | None = None
        self.cos, self.sin = self._angles()

    @property
    def nbytes(self) -> int:
        chosen = 0 if self.choices is None else self.choices.nbytes
        return self.cache.nbytes + self.cos.nbytes + self.sin.nbytes + chosen + self.prompts.nbytes

    @property
    def starts(self) -> Tensor | None:
        """The first true token of each row, int32 [B]; None where no row is padded."""
        return self.cache.span.starts

    @property
    def written(self) -> Tensor:
        """int32 [1]: behind the token that a step writes, counted where `store` begins."""
        return self.slots.lengths

    @property
    @torch.inference_mode(False)
    def logits(self) -> Tensor:
        """float32 [B, vocabulary]: where steps leave logits that the host is to look at, whoever recorded them."""
        if self._logits is None:
            vocabulary: Any = self.decoder.head.out_features
            self._logits = torch.zeros(self.batch, vocabulary, device=self.device)
        return self._logits

    def close(self) -> None:
        """Let go of recorded steps, which hold this room as it holds them: its memory is free at once, not some day."""
        self.runners.clear()
        self.prompts = PromptRunners()

    def store(self, layer: int) -> Store:
        """Where a layer's keys and values lie; there from the first prompt on, or from `furnish`."""
        found = self.cache.layers[layer].store  # type: ignore[attr-defined]
        assert isinstance(found, Store)
        return found

    def clear(self, mask: Tensor | None) -> None:
        """Forget the last call; the next one's rows are padded as a mask [B, tokens] says. Raises InvalidSetting where
        they are padded elsewhere than on the left.
        """
        self.cache.reset()
        self.padded = mask is not None and not bool((mask != 0).all())
        if mask is not None and self.padded:
            self.cache.set_padding(mask)

    @torch.inference_mode(False)
    def furnish(self) -> None:
        """Make the stores, before any prompt comes."""
        dtype = self.decoder.dtype
        for layer, parts in zip(self.cache.paged_layers, self.decoder.layers, strict=True):
            if layer.store is None:
                shapes = (
                    ((1, parts.attention.sizes.latent), (1, parts.attention.sizes.rope))
                    if isinstance(parts.attention, LatentHeads)
                    else ((parts.attention.key_heads, parts.attention.head_dim),) * 2
                )
                keys, values = (
                    torch.empty(self.batch, heads, 0, width, dtype=dtype, device=self.device) for heads, width in shapes
                )
                layer.lazy_initialization(keys, values)

    def list_pages(self) -> None:
        """Keep lists of pages for the layers whose heads follow a fixed pattern, and room for the choices of those that
        choose. Raises InvalidSetting for padded rows under a fixed pattern, whose pages are not those of the cache.
        """
        attentions = [layer.attention for layer in self.decoder.layers]
        modules = [attention.module for attention in attentions]
        if self._follows is None:
            self._follows = (any(map(fixed_heads_of, modules)), any(map(choosing_heads_of, modules)))
        fixed, choosing = self._follows
        if choosing and self.choices is None:
            stores = [self.store(layer) for layer in range(len(attentions))]
            self.choices = page_choices(attentions, stores, self.capacity, self.device)
        if not fixed:
            return
        if self.padded:
            raise InvalidSetting("rows are padded and heads follow a fixed pattern, which counts from a row's begin")
        if self.pages is None:
            heads = self.store(0).kind.key_heads
            ahead = self.slots.given.shape[1]
            self.pages = PageLists(modules, self.batch, heads, self.capacity, ahead, self.device)

    def pages_of(self, attention: GroupedAttention, query: Tensor) -> PageList | None:
        """The pages that a layer's `query` [B, H, D] reads in the step that is being composed; None: all."""
        if self.choices is not None and self.choices.serves(attention.module):
            starts = self.slots.starts if self.padded else None
            return self.choices.pages(attention, query, self.slots, starts, self.step, self.steps)
        return None if self.pages is None else self.pages.of(attention.module, self.step)

    def knows_pages_of(self, module: nn.Module) -> bool:
        """Whether steps follow the pattern of an attention, fixed or chosen."""
        chosen = self.choices is not None and self.choices.serves(module)
        return chosen or (self.pages is not None and fixed_heads_of(module) is not None)

    @property
    def may_choose(self) -> bool:
        """Whether steps may come to read chosen pages in the room that there is."""
        return self.choices is not None and self.choices.may_choose(self.capacity)

    @property
    def sparse(self) -> bool:
        """Whether the next run reads the pages that its first step chooses."""
        return self.choices is not None and self.choices.sparse

    def prompt_cache(self, given: dict[str, Any]) -> Any:
        """What the library reads a prompt into."""
        return self.cache

    def seat(self, cache: Any) -> int:
        """Take over what the library has read; how many of its tokens are kept as codes."""
        return 0

    def before_run(self, held: int, ahead: int) -> None:
        """What the host does before `ahead` steps that come behind `held` tokens."""
        if self.pages is not None:
            self.pages.refresh(held, ahead)
        if self.choices is not None:
            starts = self.slots.starts if self.padded else None
            self.choices.before_run(held, ahead, self.slots.lengths, starts)

    def handed_out(self, model: Any, held: int) -> Cache:
        """A cache of the first `held` tokens that is the caller's to keep."""
        cache = DynamicCache(config=model.config)
        for number in range(len(self.decoder.layers)):
            keys, values = self.store(number).views(held)
            keys, values = (each.clone(memory_format=torch.contiguous_format) for each in (keys, values))
            kept(cache, keys, values, number)
        return cache

    def grow(self, capacity: int, held: int) -> None:
        """Room for more tokens, of which `held` are there already."""
        self.close()
        self.capacity = bucket(capacity)
        self.pages = None
        self.cache.hold(held)
        self.cache.reserve(self.capacity)
        if self.choices is not None:
            self.choices.grow(self.capacity)
        self.list_pages()
        self.cos, self.sin = self._angles()

    def runner(self, key: Any) -> Runner | None:
        """A recorded step, now the one that was used last."""
        found = self.runners.pop(key, None)
        if found is not None:
            self.runners[key] = found
        return found

    def keep(self, key: Any, runner: Runner) -> None:
        self.runners[key] = runner
        while len(self.runners) > KEPT_RUNNERS:
            del self.runners[next(iter(self.runners))]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _angles(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, [capacity, rotated], as the model's own module makes them."""
        rows = self.decoder.position_rows
        positions = torch.arange(self.capacity, device=self.device)
        shape = (rows, 1, -1) if rows > 1 else (1, -1)
        like = torch.empty(1, 1, 1, dtype=self.decoder.dtype, device=self.device)
        cos, sin = self.decoder.rotary(like, positions.view(1, -1).expand(*shape[:-1], self.capacity))
        return cos[0].contiguous(), sin[0].contiguous()
