"""What the Triton kernels cannot serve is told before anything is launched, with its cause."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.coded_decode import CodedCacheView
from inference_pio.kernels.gemv import gemv_parts
from inference_pio.kernels.page_codes import PageForm
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton import support
from inference_pio.kernels.triton.support import (
    Cause,
    require,
    supports,
    supports_coded_decode,
    supports_decode,
    supports_elementwise,
    supports_gemv,
    supports_latent_decode,
    supports_page_summary,
    supports_rotary,
    supports_rotary_store,
    supports_rows,
)


@pytest.fixture
def gpu_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "has_triton", lambda: True)
    monkeypatch.setattr(support, "_device", lambda device: None)


def dense(heads=4, key_heads=2, width=64, dtype=torch.bfloat16):  # type: ignore[no-untyped-def]
    shapes = ((2, heads, 5, width), (2, key_heads, 9, width), (2, key_heads, 9, width))
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


def cached(dtype=torch.bfloat16):  # type: ignore[no-untyped-def]
    return [torch.zeros(2, 4, 64, dtype=dtype), *torch.zeros(2, 2, 70, 2, 64, dtype=dtype)]


def lengths(count: int = 2, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.ones(count, dtype=dtype)


def test_a_cpu_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "has_triton", lambda: True)
    told = supports(*dense())
    assert not told
    assert (told.cause, told.said) == (Cause.DEVICE, "it needs an NVIDIA GPU, and the tensors are on cpu")
    monkeypatch.setattr(support, "has_triton", lambda: False)
    assert supports(*dense()).cause is Cause.NO_TRITON
    assert supports_decode(*cached(), lengths()).cause is Cause.NO_TRITON


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


@pytest.mark.usefixtures("gpu_everywhere")
def test_elementwise_kernels_tell_of_dtypes_layouts_and_gradients() -> None:
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    assert supports_elementwise(x, None, weight)
    assert supports_elementwise(x, weight.half()).cause is Cause.DTYPE
    assert supports_elementwise(x.double(), weight.double()).cause is Cause.DTYPE
    assert supports_elementwise(x.T).cause is Cause.LAYOUT
    assert supports_elementwise(x, weight.to("meta")).cause is Cause.DEVICE
    learned = weight.clone().requires_grad_()
    assert supports_elementwise(x, learned).cause is Cause.GRADIENT
    with torch.no_grad():
        assert supports_elementwise(x, learned)


@pytest.mark.usefixtures("gpu_everywhere")
def test_rotary_kernels_tell_of_shapes() -> None:
    query, key, tables = torch.zeros(2, 5, 4, 16), torch.zeros(2, 5, 1, 16), torch.zeros(2, 5, 8)
    weight = torch.zeros(16)
    assert supports_rotary(query, key, tables, tables, (weight, None))
    assert supports_rotary(query, key, tables[:1], tables[:1])
    assert supports_rotary(query, key[:, :4], tables, tables).cause is Cause.SHAPE
    assert supports_rotary(query, key, tables[:, :4], tables[:, :4]).cause is Cause.SHAPE
    assert supports_rotary(query, key, tables[..., :7], tables[..., :7]).cause is Cause.SHAPE
    assert supports_rotary(query, key, tables, tables, (None, weight[:8])).cause is Cause.SHAPE


@pytest.mark.usefixtures("gpu_everywhere")
def test_storing_tells_of_shapes_and_counts() -> None:
    caches, table = torch.zeros(2, 9, 1, 16), torch.zeros(40, 8)
    given = [torch.zeros(2, 6 * 16), caches, caches, table, table, lengths(2), lengths(1)]
    assert supports_rotary_store(*given, heads=4)
    assert supports_rotary_store(*given, heads=3).cause is Cause.SHAPE
    assert supports_rotary_store(*given[:5], lengths(3), lengths(1), heads=4).cause is Cause.SHAPE
    assert supports_rotary_store(*given[:5], lengths(2), lengths(1, torch.int64), heads=4).cause is Cause.DTYPE
    assert supports_rotary_store(*given[:3], table[:, :7], table[:, :7], *given[5:], heads=4).cause is Cause.SHAPE


def test_require_raises_with_the_reason() -> None:
    require(support.YES)
    with pytest.raises(InvalidSetting, match=r"does not serve here: it has no dropout \(0.1 was asked for\)"):
        require(supports(*dense(), dropout=0.1))


def test_asking_loads_no_triton() -> None:
    code = "import sys, inference_pio.kernels.triton.support as s; s.has_triton(); sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


@pytest.mark.usefixtures("gpu_everywhere")
def test_rows_and_their_weights_belong_together() -> None:
    rows, weight = torch.zeros(2, 2, 64, dtype=torch.bfloat16)[:, 0], torch.zeros(5, 64, dtype=torch.bfloat16)
    codes = weight.to(torch.int8)
    assert supports_rows(rows, weight, weight[0])
    assert supports_rows(rows.float(), weight.float())
    assert supports_rows(rows, codes, codes=True)
    assert supports_rows(rows, codes).cause is Cause.DTYPE
    assert supports_rows(rows, weight.half()).cause is Cause.DTYPE
    assert supports_rows(rows.double(), weight.double()).cause is Cause.DTYPE
    assert supports_rows(rows.T, weight).cause is Cause.LAYOUT
    assert supports_rows(rows, weight.T).cause is Cause.LAYOUT
    assert supports_rows(rows[0], weight).cause is Cause.LAYOUT
    assert supports_rows(rows, weight.to("meta")).cause is Cause.DEVICE
    assert supports_rows(rows, weight.clone().requires_grad_()).cause is Cause.GRADIENT


def test_rows_on_a_cpu_are_told() -> None:
    assert supports_rows(torch.zeros(1, 64), torch.zeros(5, 64)).cause in (Cause.DEVICE, Cause.NO_TRITON)


@pytest.mark.usefixtures("gpu_everywhere")
def test_a_product_of_a_few_rows_has_its_reasons_too() -> None:
    x, weight, codes = torch.zeros(2, 64), torch.zeros(6, 64), torch.zeros(6, 64, dtype=torch.int8)
    scale, half = torch.ones(6), torch.ones(6, dtype=torch.bfloat16)

    def asked(x=x, weights=(weight,), norm_weight=None, residual=None, out=None, **given):  # type: ignore[no-untyped-def]
        return supports_gemv(x, gemv_parts(x, weights, **given), norm_weight, residual, out)

    assert asked()
    assert asked(weights=(codes, codes), scales=(half, half), norm_weight=torch.ones(64), out=torch.zeros(2, 12))
    assert asked(torch.zeros(9, 64)).cause is Cause.SHAPE
    assert asked(x.double(), (weight.double(),)).cause is Cause.DTYPE
    assert asked(out=torch.zeros(2, 6, dtype=torch.int32)).cause is Cause.DTYPE
    assert asked(weights=(codes, codes), scales=(scale, half)).cause is Cause.DTYPE
    assert asked(weights=(weight, weight), biases=(scale, half)).cause is Cause.DTYPE
    assert asked(weights=(weight, weight), biases=(scale, None))
    assert asked(torch.zeros(64, 2).mT).cause is Cause.LAYOUT
    assert asked(weights=(torch.zeros(64, 6).mT,)).cause is Cause.LAYOUT
    assert asked(residual=torch.zeros(6, 2).mT).cause is Cause.LAYOUT
    assert asked(norm_weight=torch.ones(128)[::2]).cause is Cause.LAYOUT
    assert asked(weights=(weight.to("meta"),)).cause is Cause.DEVICE
    learned = weight.clone().requires_grad_()
    assert asked(weights=(learned,)).cause is Cause.GRADIENT
    with torch.no_grad():
        assert asked(weights=(learned,))


def coded(width: int = 64, **other: object) -> CodedCacheView:
    codes = torch.zeros(2, 2, 3, 64, width, dtype=torch.uint8)
    keys = (codes, torch.ones(2, 2, 3, 1, width).bfloat16(), torch.zeros(2, 2, 3, 1, width).half())
    values = (codes, torch.ones(2, 2, 3, 64, width // 32).bfloat16(), torch.zeros(2, 2, 3, 64, width // 32).half())
    recent = torch.zeros(2, 2, 70, width, dtype=torch.bfloat16)
    view = CodedCacheView(keys, values, PageForm(8), PageForm(8, 32), recent, recent.clone(), lengths(1))
    return replace(view, **other)  # type: ignore[arg-type]


def of_queries(view: CodedCacheView, width: int = 64, **given: torch.Tensor) -> support.Support:
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
