"""Which tiles and keys the warps with roles work on: the functions themselves, run in Python upon numbers.

The language they are written in has no interpreter; what they use of it is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_pio.compat import has_warp_roles
from inference_pio.kernels.block_sparse import BlockList

pytestmark = pytest.mark.skipif(not has_warp_roles(), reason="this Triton has no roles for warps as we write them")
ROWS, TILE = 128, 128


@dataclass(frozen=True)
class Pointer:
    numbers: Tensor
    place: int = 0

    def __add__(self, step: Any) -> Pointer:
        return Pointer(self.numbers, self.place + int(step))

    def load(self) -> Number:
        assert 0 <= self.place < self.numbers.numel(), "a kernel would read beyond the tensor"
        return Number(self.numbers.flatten()[self.place])


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Any:
    from inference_pio.kernels.triton import flash_tiles

    language = SimpleNamespace(
        cdiv=lambda a, b: (Number(a) + b - 1) // b, maximum=lambda a, b: Number(max(a, b)),
        minimum=lambda a, b: Number(min(a, b)), where=choice, load=lambda pointer: pointer.load(),
        arange=lambda a, b, layout: torch.arange(a, b), static_range=range, int32=None, int64=None,
    )  # fmt: skip
    found = {name: getattr(flash_tiles, name).fn for name in ("tile_of", "_in_first", "place_of", "places_of")}
    for name, function in {**found, "gl": language}.items():
        monkeypatch.setattr(flash_tiles, name, function)
    return SimpleNamespace(**found)


class Number(int):
    """A whole number of a kernel, where division drops what is left over towards zero."""

    def to(self, dtype: None) -> Number:
        return self

    def __floordiv__(self, other: int) -> Number:
        return Number(int(self / other))

    def __mod__(self, other: int) -> Number:
        return self - self // other * other

    def __add__(self, other: Any) -> Any:
        return other + int(self) if isinstance(other, Tensor) else Number(int(self) + other)

    def __sub__(self, other: int) -> Number:
        return Number(int(self) - other)

    def __mul__(self, other: int) -> Number:
        return Number(int(self) * other)

    def __ne__(self, other: object) -> Any:
        return Number(int(self) != other)

    __radd__, __rmul__, __hash__ = __add__, __mul__, int.__hash__


def choice(condition: Any, chosen: Any, other: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, chosen, other)
    return Number(chosen if condition else other)


@dataclass(frozen=True)
class Problem:
    queries: int
    keys: int
    parts: int = 1
    causal: bool = True
    starts: tuple[int, ...] | None = None
    density: float | None = None
    batch: int = 2
    heads: int = 4
    key_heads: int = 2

    @property
    def row_blocks(self) -> int:
        return -(-self.queries // ROWS)

    @property
    def block(self) -> int:
        return TILE // self.parts

    def seen(self, batch: int, first_row: int) -> Tensor:
        """What a tile's queries may see: boolean [rows, keys]."""
        rows = torch.arange(first_row, min(first_row + ROWS, self.queries))[:, None] + self.keys - self.queries
        places = torch.arange(self.keys)[None]
        seen = places <= rows if self.causal else torch.ones(len(rows), self.keys, dtype=torch.bool)
        return seen if self.starts is None else seen & (places >= self.starts[batch])

    def lists(self) -> BlockList | None:
        if self.density is None:
            return None
        generator = torch.Generator().manual_seed(self.keys)
        shape = (self.batch, self.heads, self.row_blocks, -(-self.keys // self.block))
        kept = torch.rand(shape, generator=generator) < self.density
        for row in range(self.row_blocks):
            visible = self.seen(0, row * ROWS).any(0)
            padded = torch.nn.functional.pad(visible, (0, -self.keys % self.block))
            kept[:, :, row] &= padded.view(-1, self.block).any(1)
        return BlockList.from_kept(kept, ROWS, self.block)

    def walk(self, tiles: Any) -> Iterator[tuple[int, int, int, list[Tensor], int]]:
        """Each tile's row of the batch, head and first query, its steps' keys, and how many of these are masked."""
        lists, number = self.lists(), Number
        sizes = tuple(number(size) for size in (self.heads, self.key_heads, self.queries, self.keys,
                                                0 if lists is None else lists.indices.shape[-1]))  # fmt: skip
        counts = Pointer(torch.zeros(0) if lists is None else lists.counts)
        indices = Pointer(torch.zeros(0) if lists is None else lists.indices)
        starts = None if self.starts is None else Pointer(torch.tensor(self.starts))
        how = {"PARTS": self.parts, "LISTED": lists is not None}
        for place in range(self.batch * self.heads * self.row_blocks):
            batch, head, first, begin, blocks, steps, masked = tiles.tile_of(
                number(place), sizes, starts, counts, GROUP=self.heads // self.key_heads, ROWS=ROWS, TILE=TILE,
                CAUSAL=self.causal, HAS_STARTS=starts is not None, **how,
            )  # fmt: skip
            given = (indices, begin, blocks, steps, sizes[3])
            keys = [tiles.places_of(number(step), *given, None, TILE=TILE, **how) for step in range(int(steps))]
            for step, held in enumerate(keys):  # what is copied lies where it is said to
                for part in range(self.parts):
                    begins = tiles.place_of(number(step), *given, part, TILE=TILE, **how)
                    assert int(begins) == int(held[part * self.block])
            yield int(batch), int(head), int(first), keys, int(masked)


DENSE = [
    Problem(1, 1), Problem(128, 128), Problem(300, 300), Problem(256, 1000), Problem(200, 333), Problem(1, 640),
    Problem(500, 130), Problem(300, 300, causal=False, starts=(0, 7)), Problem(300, 400, starts=(0, 399)),
    Problem(256, 256, starts=(130, 300)), Problem(129, 513, starts=(-3, 200)),
]  # fmt: skip
LISTED = [
    Problem(queries, keys, parts, causal, None, density)
    for queries, keys in ((512, 512), (300, 300), (256, 700), (200, 333))
    for parts in (1, 2)
    for causal in (True, False)
    for density in (0.0, 0.3, 1.1)
]


@pytest.mark.parametrize("problem", [*DENSE, *LISTED], ids=str)
def test_steps_hold_what_is_to_be_read_once_and_hide_what_must_be(problem: Problem, tiles: Any) -> None:
    lists, met = problem.lists(), set()
    for batch, head, first, steps, masked in problem.walk(tiles):
        met.add((batch, head, first))
        seen = problem.seen(batch, first)
        wanted = seen if lists is None else seen & lists.kept()[batch, head, first // ROWS].repeat_interleave(
            problem.block)[: problem.keys]  # fmt: skip
        held = torch.cat(steps)
        held = held[(held >= 0) & (held < problem.keys)]
        assert len(held.unique()) == len(held)
        read = torch.zeros(problem.keys, dtype=torch.bool).index_fill(0, held, True)
        assert bool((wanted.any(0) <= read).all()), "a key that is asked for is not read"
        assert bool(((seen & read) == wanted).all()), "a key that nobody listed is read and not hidden"
        assert 1 <= masked <= len(steps)
        for places in steps[masked:]:
            assert int(places.min()) >= 0
            assert int(places.max()) < problem.keys
            assert bool(seen[:, places].all()), "a key that some query must not see is not hidden"
    assert len(met) == problem.batch * problem.heads * problem.row_blocks


def test_long_rows_come_first_and_heads_that_share_keys_side_by_side(tiles: Any) -> None:
    order = [(batch, head, first) for batch, head, first, *_ in Problem(512, 512, batch=1).walk(tiles)]
    assert order[:4] == [(0, 0, 384), (0, 1, 384), (0, 0, 256), (0, 1, 256)]
    assert order[8] == (0, 2, 384)


def test_of_aligned_texts_one_step_alone_is_masked(tiles: Any) -> None:
    assert all(masked == 1 for *_, masked in Problem(512, 1024).walk(tiles))
    assert all(masked <= 2 for *_, masked in Problem(512, 1024, parts=2, density=0.6).walk(tiles))
    assert all(masked == 1 for *_, masked in Problem(512, 1024, parts=2, density=1.1).walk(tiles))
