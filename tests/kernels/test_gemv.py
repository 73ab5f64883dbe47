"""Torch's way for a few rows rounds as the library does; what does not belong together is told before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.fp8 import quantize_rows_fp8
from inference_pio.kernels.gemv import gemv, gemv_parts, naive_gemv
from inference_pio.kernels.int8 import quantize_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights_of(*rows: int, inputs: int = 33, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [seeded(count, inputs, seed=count, dtype=dtype) / inputs**0.5 for count in rows]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"norm": True},
    {"biased": (True, False, True)},
    {"residual": True},
    {"gated": True},
    {"norm": True, "gated": True, "biased": (True, True), "residual": True},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantize", [None, quantize_rows, quantize_rows_fp8])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_torch_gives_what_the_definition_gives(
    dtype: torch.dtype, quantize: Any, rows: int, options: dict[str, Any]
) -> None:
    gated = options.get("gated", False)
    weights = weights_of(*((7, 7) if gated else (7, 1, 4)), dtype=dtype)
    if gated:
        weights[1] = weights[1].flip(0)
    columns = 7 if gated else 12
    given: dict[str, Any] = {"gated": gated}
    if quantize:
        weights, given["scales"] = map(list, zip(*map(quantize, weights), strict=True))
    if "biased" in options:
        each = zip(weights, options["biased"], strict=True)
        given["biases"] = [seeded(weight.shape[0], dtype=dtype) if biased else None for weight, biased in each]
    if "norm" in options:
        given |= {"norm_weight": seeded(33, seed=5, dtype=dtype), "eps": 0.1}
    if "residual" in options:
        given["residual"] = seeded(rows, columns, seed=6, dtype=dtype)
    x = seeded(rows, 33, seed=9, dtype=dtype)
    got, wanted = gemv(x, weights, **given), naive_gemv(x, weights, **given)
    assert got.shape == (rows, columns)
    assert got.dtype == wanted.dtype == dtype
    tight = dtype == torch.float32 and not quantize  # products of codes on a CPU are bfloat16 inside
    torch.testing.assert_close(got, wanted, **({"rtol": 1e-5, "atol": 1e-5} if tight else {"rtol": 2e-2, "atol": 3e-2}))
    exact = naive_gemv(x, weights, rounded=False, **given)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact, wanted.float(), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_rounds_where_the_library_rounds(dtype: torch.dtype) -> None:
    norm = Qwen3RMSNorm(33, eps=1e-3).to(dtype)
    norm.weight.data = seeded(33, seed=5, dtype=dtype)
    gate, up = (nn.Linear(33, 7, bias=False, dtype=dtype) for _ in range(2))
    x, residual = seeded(2, 33, dtype=dtype), seeded(2, 7, seed=3, dtype=dtype)
    with torch.no_grad():
        normal = norm(x)
        wanted = residual + F.silu(gate(normal)) * up(normal)
        given = {"norm_weight": norm.weight, "eps": 1e-3, "gated": True, "residual": residual}
        assert torch.equal(gemv(x, [gate.weight, up.weight], **given), wanted)
        merged = torch.cat([gate.weight, up.weight])
        assert torch.equal(gemv(x, [merged], **given), wanted)


def test_one_weight_of_gate_and_up_brings_its_scales_and_biases() -> None:
    x, merged = seeded(2, 33), seeded(10, 33, seed=1)
    codes, scale = quantize_rows(merged)
    bias = seeded(10, seed=2)
    parts = gemv_parts(x, [codes], scales=[scale], biases=[bias], gated=True)
    assert parts.columns == 5
    for index, rows in enumerate((slice(None, 5), slice(5, None))):
        assert torch.equal(parts.weights[index], codes[rows])
        assert torch.equal(parts.scales[index], scale[rows])  # type: ignore[index]
        assert torch.equal(parts.biases[index], bias[rows])  # type: ignore[arg-type, index]


def test_out_may_be_the_residual_a_view_or_wider() -> None:
    x, weights = seeded(2, 33, dtype=torch.bfloat16), weights_of(7, 4, dtype=torch.bfloat16)
    residual = seeded(2, 11, seed=3, dtype=torch.bfloat16)
    wanted = gemv(x, weights, residual=residual)
    room = torch.zeros(2, 20)
    assert gemv(x, weights, residual=residual, out=room[:, 4:15]).data_ptr() == room[:, 4:15].data_ptr()
    assert torch.equal(room[:, 4:15].bfloat16(), wanted)
    assert not room[:, :4].any()
    assert not room[:, 15:].any()
    assert gemv(x, weights, residual=residual, out=residual) is residual
    assert torch.equal(residual, wanted)


WRONG = {
    "no \\[rows, inputs\\]": {"x": torch.zeros(1, 2, 33)},
    "0 weights were given": {"weights": []},
    "4 weights were given": {"weights": weights_of(1, 2, 3, 4)},
    "shape \\(7, 32\\) does not take x of 33": {"weights": weights_of(7, inputs=32)},
    "does not go with x of torch.float32": {"weights": weights_of(7, dtype=torch.bfloat16)},
    "a weight of torch.float32 does not go": {"scales": [torch.ones(7)]},
    "scales of shapes \\[\\(6,\\)\\] do not go with weights of \\[7\\]": {
        "weights": [torch.zeros(7, 33, dtype=torch.int8)], "scales": [torch.ones(6)]},
    "biases of shapes \\[\\(7,\\), None\\] do not go": {"biases": [torch.ones(7), None]},
    "scales of shapes \\[None\\]": {"weights": [torch.zeros(7, 33, dtype=torch.int8)], "scales": [None]},
    "does not scale 33 inputs": {"norm_weight": torch.ones(34)},
    "are no gate and up": {"gated": True},
    "\\(7, 33\\), \\(6, 33\\)\\] are no gate": {"gated": True, "weights": weights_of(7, 6)},
    "a residual of shape \\(2, 8\\)": {"residual": torch.zeros(2, 8)},
    "an out of shape \\(1, 7\\) is not the result's \\(2, 7\\)": {"out": torch.zeros(1, 7)},
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_belong_together_is_told(said: str) -> None:
    given = {"x": seeded(2, 33), "weights": weights_of(7), **WRONG[said]}
    with pytest.raises(InvalidSetting, match=said):
        gemv(given.pop("x"), given.pop("weights"), **given)  # type: ignore[arg-type]
