"""One layer keeps every token, codes what grows old and nothing twice, and refuses what it would get wrong."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import DynamicLayer

from inference_pio.cache.coded_layer import RECENT, CodedLayer
from inference_pio.cache.kv_format import KV_FORMATS, forms_of
from inference_pio.cache.store import Kind
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.coded_decode import CodedCacheView, naive_coded_decode
from inference_pio.kernels.decode_attention import naive_decode_attention
from inference_pio.kernels.page_codes import PageForm, code_pages, page_values
from tests.cache.test_store import CPU, states

KINDS = {
    "grouped": Kind(2, 3, 32, 3, 32, torch.bfloat16, CPU),
    "narrow values": Kind(2, 4, 12, 4, 6, torch.float32, CPU),
    "latent": Kind(2, 1, 48, 1, 6, torch.bfloat16, CPU),
}
EACH_FORMAT = pytest.mark.parametrize("kv_format", KV_FORMATS)
EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@dataclass
class Plainly:
    """The same as lists of whole tokens: where enough of them are old, the oldest 64 become what their codes say."""

    forms: tuple[PageForm | None, ...]
    coded: list[tuple[Tensor, ...]] = field(default_factory=list)
    recent: list[tuple[Tensor, ...]] = field(default_factory=list)

    def update(self, *states: Tensor) -> tuple[Tensor, ...]:
        self.recent += [tuple(side[:, :, at] for side in states) for at in range(states[0].shape[2])]
        found = self.all()
        while len(self.recent) >= RECENT + 64:
            pages = [torch.stack([token[side] for token in self.recent[:64]], 2) for side in (0, 1)]
            del self.recent[:64]
            made = [
                page if form is None else page_values(code_pages(page, form), form, page.dtype)
                for page, form in zip(pages, self.forms, strict=True)
            ]
            self.coded += [tuple(side[:, :, at] for side in made) for at in range(64)]
        return found

    def all(self) -> tuple[Tensor, ...]:
        tokens = self.coded + self.recent
        return tuple(torch.stack([token[side] for token in tokens], 2) for side in (0, 1))

    def crop(self, tokens: int) -> None:
        for _ in range(-tokens):
            kept = self.recent or self.coded
            if kept:
                kept.pop()

    def select(self, rows: Tensor) -> None:
        self.coded = [tuple(side[rows] for side in token) for token in self.coded]
        self.recent = [tuple(side[rows] for side in token) for token in self.recent]


def walked(kind: Kind, kv_format: str, steps: tuple[int, ...]) -> tuple[CodedLayer, Plainly]:
    """A layer and its plain counterpart after updates of so many tokens; a negative step crops."""
    layer, plainly = CodedLayer(kv_format), Plainly(forms_of(kv_format, kind))
    for seed, step in enumerate(steps):
        if step < 0:
            layer.crop(step)
            plainly.crop(step)
        else:
            given = states(kind, step, seed)
            for found, wanted in zip(layer.update(*given), plainly.update(*given), strict=True):
                assert torch.equal(found, wanted), (seed, step)
        assert layer.get_seq_length() == len(plainly.coded) + len(plainly.recent)
        assert layer.coded == len(plainly.coded)
    return layer, plainly


WALKS = {
    "one token": (1,) * 3,
    "up to the first page": (127, 1, 1),
    "a prompt, then tokens": (300, 1, 1, 1, 70, 1),
    "pages": (64, 64, 64, 64, 64, 1),
    "crops among the last": (200, 5, -5, 3, -40, 1, 100),
    "a crop into a page": (300, -150, 10, 1, 200, 1, 64, 1),
    "crops into short pages": (400, -170, 5, -60, 130, -100, 1, -130, 200, 2),
    "all is cropped": (150, -150, 80, -1000, 140, 1),
}


@EACH_FORMAT
@EACH_KIND
@pytest.mark.parametrize("steps", WALKS.values(), ids=WALKS)
def test_it_hands_out_what_a_plain_list_of_tokens_does(kv_format: str, kind: Kind, steps: tuple[int, ...]) -> None:
    walked(kind, kv_format, steps)


@EACH_FORMAT
def test_codes_are_never_written_again(kv_format: str) -> None:
    kind = KINDS["grouped"]
    layer, _ = walked(kind, kv_format, (300, -110))
    assert layer.fills == [64, 64, 62]
    before = [[part[:, :, :3].clone() for part in side.parts] for side in layer.pages]
    for seed in range(4):
        layer.update(*states(kind, 100, seed))
    for side, kept in zip(layer.pages, before, strict=True):
        assert all(torch.equal(part[:, :, :3], one) for part, one in zip(side.parts, kept, strict=True))


@EACH_FORMAT
@EACH_KIND
def test_rows_are_reordered_repeated_and_chosen(kv_format: str, kind: Kind) -> None:
    layer, plainly = walked(kind, kv_format, (200, -90, 130))
    for name, given, rows in (
        ("reorder_cache", torch.tensor([1, 0]), [1, 0]),
        ("batch_repeat_interleave", 3, [0, 0, 0, 1, 1, 1]),
        ("batch_select_indices", torch.tensor([4, 0, 0, 1]), [4, 0, 0, 1]),
        ("batch_select_indices", torch.tensor([True, False, False, True]), [0, 3]),
    ):
        getattr(layer, name)(given)
        plainly.select(torch.tensor(rows))
    new = states(kind, 2, 99)
    for found, wanted in zip(layer.update(*new), plainly.update(*new), strict=True):
        assert torch.equal(found, wanted)


def test_lengths_and_masks_are_those_of_the_librarys_layer() -> None:
    layer, theirs = CodedLayer("int8"), DynamicLayer()
    assert layer.get_seq_length() == theirs.get_seq_length() == 0
    for seed, tokens in enumerate((130, 1, 200)):
        layer.update(*states(KINDS["grouped"], tokens, seed))
        theirs.update(*states(KINDS["grouped"], tokens, seed))
        assert layer.get_mask_sizes(3) == theirs.get_mask_sizes(3)
        assert layer.get_max_length() == theirs.get_max_length() == -1
    for tokens in (-3, 0, -200):
        layer.crop(tokens)
        theirs.crop(tokens)
        assert layer.get_seq_length() == theirs.get_seq_length()
    assert (layer.is_croppable, layer.is_sliding) == (theirs.is_croppable, theirs.is_sliding)


@pytest.mark.parametrize(("kv_format", "most"), [("int8", 0.54), ("int4", 0.30), ("fp8", 0.54)])
def test_bytes_are_those_of_the_tensors_at_heads_of_128(kv_format: str, most: float) -> None:
    kind = Kind(1, 8, 128, 8, 128, torch.bfloat16, CPU)
    layer = CodedLayer(kv_format)
    layer.update(*states(kind, 64 * 33, 0))
    coded = layer.nbytes - layer.recent_nbytes
    assert (layer.coded, layer.recent_nbytes) == (64 * 32, 64 * 2 * 8 * 128 * 2)
    assert coded / (layer.coded * 2 * 8 * 128 * 2) <= most
    storages = {part.untyped_storage() for side in layer.pages for part in side.parts}
    assert sum(storage.nbytes() for storage in storages) == coded


def test_pages_lie_as_the_decode_kernel_reads_them() -> None:
    kind = Kind(2, 3, 64, 3, 64, torch.float32, CPU)
    layer = CodedLayer("int8")
    layer.update(*states(kind, 300))
    forms = forms_of("int8", kind)
    assert forms[0] is not None
    assert forms[1] is not None
    pages = torch.tensor([len(layer.fills)], dtype=torch.int32)
    view = CodedCacheView(layer.pages[0].parts, layer.pages[1].parts, *forms, *layer.recent, pages)
    keys, values = layer.update(*states(kind, 0))
    query, lengths = states(kind, 1, 5)[0][:, :, 0], torch.tensor([300], dtype=torch.int32)
    wanted = naive_decode_attention(query, keys.transpose(1, 2), values.transpose(1, 2), lengths)
    torch.testing.assert_close(naive_coded_decode(query, view, lengths), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_keeps_a_long_prompt_alive() -> None:
    layer = CodedLayer("int4")
    layer.update(*states(KINDS["grouped"], 1000))
    for recent in layer.recent:
        assert recent.untyped_storage().nbytes() == recent.nbytes
        assert RECENT <= recent.shape[2] < RECENT + 64


def test_a_copy_goes_on_by_itself() -> None:
    kind = KINDS["grouped"]
    layer, plainly = walked(kind, "int8", (200,))
    other = copy.deepcopy(layer)
    other.update(*states(kind, 500, 5))
    new = states(kind, 1, 7)
    for found, wanted in zip(layer.update(*new), plainly.update(*new), strict=True):
        assert torch.equal(found, wanted)


def test_an_empty_layer_takes_another_kind_and_a_full_one_refuses_it() -> None:
    layer, kind = CodedLayer("int8"), KINDS["grouped"]
    layer.update(*states(kind, 130))
    with pytest.raises(InvalidSetting, match=r"holds 130 tokens of Kind\(batch=2.*batch=3.* arrives: reset\(\) it"):
        layer.update(*states(kind._replace(batch=3), 1))
    with pytest.raises(InvalidSetting, match=r"dtype=torch.float32"):
        layer.update(*states(kind._replace(dtype=torch.float32), 1))
    layer.crop(-130)
    layer.update(*states(kind._replace(batch=3), 70))
    layer.reset()
    assert (layer.get_seq_length(), layer.nbytes) == (0, 0)
    layer.update(*states(KINDS["latent"], 130))
    assert layer.get_seq_length() == 130


def test_what_it_cannot_do_is_refused() -> None:
    layer, kind = CodedLayer("int8"), KINDS["grouped"]
    with pytest.raises(InvalidSetting, match=r"crop\(5\): a negative number"):
        layer.crop(5)
    with pytest.raises(InvalidSetting, match="does not leave its device"):
        layer.offload()
    with pytest.raises(InvalidSetting, match=r"torch\.no_grad"):
        layer.update(*(state.requires_grad_() for state in states(kind, 1)))
    with pytest.raises(InvalidSetting, match="divides values of 67"):
        layer.update(*states(kind._replace(key_width=67, value_width=67), 1))
