"""Which calls of attention the Triton kernels cannot serve is told with its cause."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference_pio.kernels.coded_decode import CodedCacheView
from inference_pio.kernels.page_codes import PageForm
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton.attention_support import (
    supports,
    supports_coded_decode,
    supports_decode,
    supports_latent_decode,
    supports_page_summary,
)
from inference_pio.kernels.triton.support import Cause, Support


def dense(heads=4, key_heads=2, width=64, dtype=torch.bfloat16):  # type: ignore[no-untyped-def]
    shapes = ((2, heads, 5, width), (2, key_heads, 9, width), (2, key_heads, 9, width))
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


def cached(dtype=torch.bfloat16):  # type: ignore[no-untyped-def]
    return [torch.zeros(2, 4, 64, dtype=dtype), *torch.zeros(2, 2, 70, 2, 64, dtype=dtype)]


def lengths(count: int = 2, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.ones(count, dtype=dtype)


@pytest.mark.usefixtures("gpu_everywhere")
def test_what_fits_is_served() -> None:
    assert supports(*dense())
    assert supports_decode(*cached(), lengths(), starts=lengths())
    assert supports_decode(*cached(), lengths(1))
    pool = torch.zeros(7, 64, 2, 64, dtype=torch.bfloat16)
    assert supports_decode(cached()[0], pool, pool, lengths(), table=torch.zeros(2, 3, dtype=torch.int32))


@pytest.mark.usefixtures("gpu_everywhere")
def test_every_reason_has_its_cause() -> None:
    query, key, value = dense()
    assert supports(query, key, value, dropout=0.1).cause is Cause.DROPOUT
    assert supports(*dense(dtype=torch.float32)).cause is Cause.DTYPE
    assert supports(query, key, value.half()).cause is Cause.DTYPE
    assert supports(*dense(width=80)).cause is Cause.HEAD_DIM
    assert supports(query.repeat(1, 1, 1, 2), key, value).cause is Cause.HEAD_DIM
    assert supports(*dense(heads=5)).cause is Cause.SHAPE
    assert supports(query, key, value[:, :, 1:]).cause is Cause.SHAPE
    assert supports(query[0], key, value).cause is Cause.SHAPE
    assert supports(query, key.mT.contiguous().mT, value).cause is Cause.LAYOUT
    learned = query.clone().requires_grad_()
    assert supports(learned, key, value).cause is Cause.GRADIENT
    with torch.no_grad():
        assert supports(learned, key, value)


@pytest.mark.usefixtures("gpu_everywhere")
def test_masks_have_their_reasons_too() -> None:
    tensors, mask = dense(), torch.ones(2, 1, 5, 16, dtype=torch.bool)[..., 3:12]
    for fits in (mask, mask[:1].float(), mask.expand(2, 4, 5, 9).half(), mask[0], mask[0, 0], mask[:, :, :1]):
        assert supports(*tensors, fits)
    assert supports(*tensors, mask.int()).cause is Cause.MASK
    assert supports(*tensors, mask.double()).cause is Cause.MASK
    assert supports(*tensors, mask[..., :1]).cause is Cause.MASK
    assert supports(*tensors, mask[:, :, :4]).cause is Cause.MASK
    assert supports(*tensors, mask[None]).cause is Cause.MASK
    assert supports(*tensors, mask.mT.contiguous().mT).cause is Cause.MASK
    assert supports(*tensors, mask.expand(2, 2, 5, 9)).cause is Cause.MASK
    assert supports(*tensors, mask.to("meta")).cause is Cause.DEVICE
    learned = mask.float().requires_grad_()
    assert supports(*tensors, learned).cause is Cause.GRADIENT
    with torch.no_grad():
        assert supports(*tensors, learned)


@pytest.mark.usefixtures("gpu_everywhere")
def test_decode_tells_of_caches_lengths_and_tables() -> None:
    query, key, value = cached()
    assert supports_decode(query[None], key, value, lengths()).cause is Cause.SHAPE
    assert supports_decode(query, key[:1], value[:1], lengths()).cause is Cause.SHAPE
    assert supports_decode(query, key, value, lengths(3)).cause is Cause.SHAPE
    assert supports_decode(query, key, value, lengths(dtype=torch.int64)).cause is Cause.DTYPE
    table = torch.zeros(2, 3, dtype=torch.int32)
    assert supports_decode(query, key, value, lengths(), table=table).cause is Cause.LAYOUT  # pages of 70


@pytest.mark.usefixtures("gpu_everywhere")
def test_page_summaries_tell_of_layouts_and_lengths() -> None:
    keys = torch.zeros(2, 128, 3, 24, dtype=torch.bfloat16)
    summary = PageSummary.zeros(keys)
    assert supports_page_summary(summary, keys, lengths(1), lengths(2))
    assert supports_page_summary(summary, keys[:, :64], lengths(1)).cause is Cause.LAYOUT
    assert supports_page_summary(summary, keys.mT.contiguous().mT, lengths(1)).cause is Cause.LAYOUT
    assert supports_page_summary(summary, keys, lengths(2)).cause is Cause.SHAPE
    assert supports_page_summary(summary, keys, lengths(1), lengths(3)).cause is Cause.SHAPE
    assert supports_page_summary(summary, keys, lengths(1, torch.int64)).cause is Cause.DTYPE
    assert supports_page_summary(summary, keys.double(), lengths(1)).cause is Cause.DTYPE


@pytest.mark.gpu
def test_gpu_is_served() -> None:
    assert supports(*(tensor.cuda() for tensor in dense()))
    assert supports(*dense()).cause is Cause.DEVICE


def latents(width=512, rope=64, dtype=torch.bfloat16):  # type: ignore[no-untyped-def]
    shapes = ((2, 128, width), (2, 128, rope), (2, 70, width), (2, 70, rope))
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


@pytest.mark.usefixtures("gpu_everywhere")
def test_a_latent_cache_is_served_in_one_tensor_or_two_and_by_pages() -> None:
    query, query_rope, latent, rope = latents()
    assert supports_latent_decode(query, query_rope, latent, rope, lengths(), lengths())
    whole = torch.zeros(2, 70, 576, dtype=torch.bfloat16)
    assert supports_latent_decode(query, query_rope, whole[..., :512], whole[..., 512:], lengths(1))
    pool, table = torch.zeros(7, 64, 576, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.int32)
    assert supports_latent_decode(query, query_rope, pool[..., :512], pool[..., 512:], lengths(), table=table)


@pytest.mark.usefixtures("gpu_everywhere")
def test_every_reason_against_a_latent_cache_has_its_cause() -> None:
    query, query_rope, latent, rope = latents()
    assert supports_latent_decode(query[:, 0], query_rope, latent, rope, lengths()).cause is Cause.SHAPE
    assert supports_latent_decode(query, query_rope[:, 1:], latent, rope, lengths()).cause is Cause.SHAPE
    assert supports_latent_decode(query, query_rope, latent[:, 1:], rope, lengths()).cause is Cause.SHAPE
    assert supports_latent_decode(query, query_rope, latent[:1], rope[:1], lengths()).cause is Cause.SHAPE
    assert supports_latent_decode(query, query_rope, latent, rope, lengths(3)).cause is Cause.SHAPE
    assert supports_latent_decode(query, query_rope, latent, rope, lengths(dtype=torch.int64)).cause is Cause.DTYPE
    assert supports_latent_decode(*latents(dtype=torch.float32), lengths()).cause is Cause.DTYPE
    assert supports_latent_decode(query, query_rope.half(), latent, rope, lengths()).cause is Cause.DTYPE
    assert supports_latent_decode(*latents(width=96), lengths()).cause is Cause.HEAD_DIM
    assert supports_latent_decode(*latents(rope=8), lengths()).cause is Cause.HEAD_DIM
    turned = rope.transpose(1, 2).contiguous().transpose(1, 2)
    assert supports_latent_decode(query, query_rope, latent, turned, lengths()).cause is Cause.LAYOUT
    table = torch.zeros(2, 3, dtype=torch.int32)
    assert supports_latent_decode(query, query_rope, latent, rope, lengths(), table=table).cause is Cause.LAYOUT


def coded(width: int = 64, **other: object) -> CodedCacheView:
    codes = torch.zeros(2, 2, 3, 64, width, dtype=torch.uint8)
    keys = (codes, torch.ones(2, 2, 3, 1, width).bfloat16(), torch.zeros(2, 2, 3, 1, width).half())
    values = (codes, torch.ones(2, 2, 3, 64, width // 32).bfloat16(), torch.zeros(2, 2, 3, 64, width // 32).half())
    recent = torch.zeros(2, 2, 70, width, dtype=torch.bfloat16)
    view = CodedCacheView(keys, values, PageForm(8), PageForm(8, 32), recent, recent.clone(), lengths(1))
    return replace(view, **other)  # type: ignore[arg-type]


def of_queries(view: CodedCacheView, width: int = 64, **given: torch.Tensor) -> Support:
    return supports_coded_decode(
        torch.zeros(2, 4, width, dtype=torch.bfloat16), view, **{"lengths": lengths(), **given}
    )


@pytest.mark.usefixtures("gpu_everywhere")
def test_codes_that_fit_are_served_and_others_are_told() -> None:
    assert of_queries(coded())
    assert of_queries(coded(), lengths=lengths(1), starts=lengths())
    narrow = coded(width=96)
    assert of_queries(narrow, width=96).cause is Cause.HEAD_DIM
    assert of_queries(narrow).cause is Cause.SHAPE
    recent = torch.zeros(2, 2, 70, 64, dtype=torch.bfloat16)
    assert of_queries(coded(recent_values=recent[:, :, :3])).cause is Cause.SHAPE
    assert of_queries(coded(recent_values=recent.transpose(1, 2).contiguous().transpose(1, 2))).cause is Cause.LAYOUT
    assert of_queries(coded(recent_keys=recent.half(), recent_values=recent.half())).cause is Cause.DTYPE
    assert of_queries(coded(pages=torch.ones(1, dtype=torch.int64))).cause is Cause.DTYPE
    assert of_queries(coded(pages=lengths())).cause is Cause.DTYPE
    assert of_queries(coded(), lengths=lengths(3)).cause is Cause.SHAPE
    spread = tuple(torch.stack([part, part], -1)[..., 0] for part in coded().keys)
    assert of_queries(coded(keys=spread)).cause is Cause.LAYOUT
    for other in (
        {"key_form": PageForm(8, 32)}, {"key_form": PageForm(8, tokens=32)}, {"value_form": PageForm(4, 32)},
        {"value_form": PageForm(8, 48)}, {"value_form": PageForm(8, 32, floating=True)},
    ):  # fmt: skip
        assert "it reads int8 codes" in of_queries(coded(**other)).said
