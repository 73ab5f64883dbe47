"""The attention function: each call is sorted into its phase, and runs on what serves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy import exact_attention as room
from inference_pio.anatomy.exact_attention import exact_attention, exact_vision_attention, sort
from inference_pio.anatomy.served import Served
from inference_pio.compat import library_attention, seen_keys, telling_mask
from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.attention_backends import run
from inference_pio.kernels.attention_choice import FUSED, TRITON, Phase
from inference_pio.kernels.attention_serving import Serving
from inference_pio.kernels.triton import support

FUSED_ALONE = Served(Serving({}), torch.float32, 16, 16)
MODULE = nn.Module()
MODULE.num_key_value_groups = 2  # type: ignore[assignment]


def _tensors(queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    sizes = ((2, 4, queries, 16), (2, 2, keys, 16), (2, 2, keys, 16))
    return tuple(torch.randn(size, generator=generator) for size in sizes)  # type: ignore[return-value]


def _left(*starts: int, columns: int) -> torch.Tensor:
    return torch.arange(columns) >= torch.tensor(starts)[:, None]


FOUR = torch.tensor(4)
CALLS: dict[str, tuple[dict[str, Any], Phase, int]] = {
    "prefill": ({"q_length": 5, "kv_length": 5}, Phase.PREFILL, 5),
    "static prefill": ({"q_length": 5, "kv_length": 9}, Phase.PREFILL, 5),
    "padded prefill": (
        {"q_length": 5, "kv_length": 5, "attention_mask": _left(2, 0, columns=5)}, Phase.PADDED_PREFILL, 5
    ),
    "padded static prefill": (
        {"q_length": 5, "kv_length": 9, "attention_mask": _left(2, 0, columns=5)}, Phase.PADDED_PREFILL, 5
    ),
    "chunk": ({"q_length": 3, "kv_length": 7, "q_offset": 4}, Phase.CHUNK, 7),
    "static chunk": ({"q_length": 3, "kv_length": 9, "q_offset": FOUR}, Phase.CHUNK, 7),
    "padded static chunk": (
        {"q_length": 3, "kv_length": 9, "q_offset": FOUR, "attention_mask": _left(1, 0, columns=7)},
        Phase.PADDED_PREFILL, 7,
    ),
    "decode": ({"q_length": 1, "kv_length": 7, "q_offset": 6}, Phase.DECODE, 7),
    "padded decode": (
        {"q_length": 1, "kv_length": 7, "q_offset": 6, "attention_mask": _left(0, 3, columns=7)},
        Phase.PADDED_DECODE, 7,
    ),
    "static decode": (
        {"q_length": 1, "kv_length": 9, "q_offset": FOUR, "allow_is_causal_skip": False}, Phase.STATIC_DECODE, 9
    ),
    "first token of a static cache": (
        {"q_length": 1, "kv_length": 9, "allow_is_causal_skip": False}, Phase.DECODE, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_sorted_by_what_its_mask_tells_and_gives_what_the_library_gives(name: str) -> None:
    asked, phase, kept = CALLS[name]
    mask = telling_mask(batch_size=2, **asked)
    query, key, value = _tensors(asked["q_length"], asked["kv_length"])
    found, keys, values, _ = sort(query, key, value, mask, causal=True)
    assert (found, keys.shape[2], values.shape[2]) == (phase, kept, kept)
    got, weights = exact_attention(FUSED_ALONE)(MODULE, query, key, value, mask, is_causal=True)
    expected, _ = library_attention()(MODULE, query, key, value, mask, is_causal=True)
    assert weights is None
    visible = slice(None) if mask is None else mask[:, 0].any(-1)
    torch.testing.assert_close(got[visible], expected[visible], rtol=1e-5, atol=1e-5)
    assert got.is_contiguous()


def test_masks_of_others_go_to_the_kernels_that_read_masks() -> None:
    query, key, value = _tensors(3, 7)
    holes = torch.rand(2, 1, 3, 7) > 0.3
    assert sort(query, key, value, holes, causal=True)[0] is Phase.MASKED
    assert sort(query, key, value, holes.float(), causal=True)[0] is Phase.BIASED
    assert sort(query[:, :, :1], key, value, holes[:, :, :1], causal=True)[0] is Phase.MASKED_DECODE
    assert sort(query, key, value, None, causal=False)[0] is Phase.VISION


def test_what_a_mask_tells_counts_for_calls_of_its_own_shape_alone() -> None:
    query, key, value = _tensors(5, 5)
    mask = telling_mask(2, 5, 5, attention_mask=_left(2, 0, columns=5))
    assert seen_keys(mask) is not None
    assert sort(query, key[:, :, :4], value[:, :, :4], mask, causal=True)[0] is Phase.MASKED
    assert sort(query.repeat(2, 1, 1, 1), key, value, mask, causal=True)[0] is Phase.MASKED


@pytest.fixture
def served_by(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Phase]]:
    """The backend and phase of every call, each run by torch's own choice."""
    calls: list[tuple[str, Phase]] = []

    def watched(backend: str, phase: Phase, *tensors: torch.Tensor, **how: Any) -> torch.Tensor:
        calls.append((backend, phase))
        return run(FUSED, phase, *tensors, **how)

    monkeypatch.setattr(room, "run", watched)
    return calls


def test_triton_serves_inference_in_the_dtype_and_widths_that_it_was_checked_for(
    served_by: list[tuple[str, Phase]],
) -> None:
    function = exact_attention(Served(Serving({Phase.DECODE: ((0, TRITON),)}), torch.float32, 16, 16))
    query, key, value = _tensors(1, 7)
    function(MODULE, query, key, value, None)
    function(MODULE, query, key, value, None, dropout=0.1)
    function(MODULE, query.requires_grad_(), key, value, None)
    with torch.no_grad():
        function(MODULE, query, key, value, None)
        function(MODULE, query.double(), key.double(), value.double(), None)
        function(MODULE, query[..., :8], key[..., :8], value, None)
    assert [backend for backend, _ in served_by] == [TRITON, FUSED, FUSED, TRITON, FUSED, FUSED]


def test_a_mask_that_the_kernel_does_not_read_goes_to_torchs_own_choice(
    served_by: list[tuple[str, Phase]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "_device", lambda device: None)  # as on a GPU
    phases = dict.fromkeys((Phase.MASKED, Phase.BIASED, Phase.CHUNK), ((0, TRITON),))
    function = exact_attention(Served(Serving(phases), torch.bfloat16, 64, 64))
    given = [tensor.bfloat16().repeat(1, 1, 1, 4) for tensor in _tensors(5, 7)]  # as wide as the kernel knows
    mask = torch.rand(2, 1, 5, 7) > 0.3
    turned = torch.rand(2, 1, 7, 5).mT > 0.3
    learned = torch.zeros(2, 1, 5, 7, dtype=torch.bfloat16, requires_grad=True)
    for one in (mask, turned.mT.contiguous().mT, torch.zeros(2, 1, 5, 7, dtype=torch.bfloat16), learned):
        function(MODULE, *given, one)
    with torch.no_grad():
        function(MODULE, *given, learned)
    expected = [(TRITON, Phase.MASKED), (FUSED, Phase.MASKED)]
    expected += [(backend, Phase.BIASED) for backend in (TRITON, FUSED, TRITON)]
    assert served_by == expected


def test_pictures_of_a_tower_are_served_in_one_call_for_each_size(served_by: list[tuple[str, Phase]]) -> None:
    lengths = [4, 4, 6, 4]
    query, _, _ = _tensors(sum(lengths), 1)
    query = query[:1]
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    packing = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 6, "max_length_k": 6}
    function = exact_vision_attention(FUSED_ALONE)
    for _ in range(2):
        out, _ = function(MODULE, query, query, query, None, is_causal=False, **packing)
    assert served_by == [(FUSED, Phase.VISION)] * 4
    parts = [naive_attention(part, part, part) for part in query.split(lengths, 2)]
    torch.testing.assert_close(out, torch.cat(parts, 2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    whole, _ = function(MODULE, query, query, query, None, is_causal=False)
    torch.testing.assert_close(whole, naive_attention(query, query, query).transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [exact_attention, exact_vision_attention])
def test_attention_weights_are_refused(make: Any) -> None:
    query, key, value = _tensors(3, 3)
    with pytest.raises(RefusedOnOptimized, match="output_attentions=True"):
        make(FUSED_ALONE)(MODULE, query, key, value, None, output_attentions=True)


def test_arguments_that_only_the_library_knows_are_the_librarys() -> None:
    query, key, value = _tensors(3, 3)
    bias = torch.randn(2, 4, 3, 3)
    try:
        expected, _ = library_attention()(MODULE, query, key, value, None, position_bias=bias, is_causal=False)
    except TypeError:
        pytest.skip("this version of transformers has no position bias")
    got, _ = exact_attention(FUSED_ALONE)(MODULE, query, key, value, None, position_bias=bias, is_causal=False)
    assert torch.equal(got, expected)
