"""Rotating a token and storing it, on torch, against its definition: no other place of the caches changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.kernels.rotary_store import (
    choose_rotary_store_backend,
    naive_rotate_and_store,
    rotate_and_store,
    rotate_and_store_at,
    turns_at,
)
from tests.kernels.test_rms_norm import DTYPES, drawn
from tests.kernels.ulps import ulps_apart

CASES: list[dict[str, Any]] = [
    {},
    {"heads": 4, "key_heads": 2, "width": 24, "turned": 24, "lengths": (1,)},
    {"width": 16, "turned": 8, "lengths": (7, 3, 1), "normed": True},
    {"width": 20, "turned": 6, "normed": True, "interleaved": True},
]


def inputs(
    rows: int = 3, heads: int = 3, key_heads: int = 1, width: int = 16, turned: int = 16,
    lengths: tuple[int, ...] = (7,), normed: bool = False, interleaved: bool = False,
    dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> tuple[list[torch.Tensor], dict[str, Any]]:  # fmt: skip
    """What `rotate_and_store` takes; the caches are parts of wider ones, their rows in the wrong order."""
    qkv = drawn(rows, (heads + 2 * key_heads) * width, dtype=dtype)
    held = drawn(2, 9, rows, key_heads, width + 8, dtype=dtype, seed=1)[..., :width].transpose(1, 2)
    tables = drawn(2, 40, turned, dtype=torch.float32, seed=2)
    positions = torch.tensor([39, 0, 17, 5][:rows], dtype=torch.int32)
    tensors = [qkv, held[0], held[1], tables[0].cos().to(dtype), tables[1].sin().to(dtype), positions]
    tensors.append(torch.tensor(lengths, dtype=torch.int32))
    norms = [drawn(width, dtype=dtype, seed=seed).to(device) if normed else None for seed in (3, 4)]
    how = {"heads": heads, "key_heads": key_heads, "query_norm": norms[0], "key_norm": norms[1], "eps": 1e-5}
    return [tensor.to(device) for tensor in tensors], how | {"interleaved": interleaved}


def assert_it_is_its_definition(rotate: Any, case: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> None:
    ours, how = inputs(**case, dtype=dtype, device=device)
    theirs, _ = inputs(**case, dtype=dtype, device=device)
    limit = (8 if dtype == torch.float32 else 2) if case.get("normed") else 0
    wanted = naive_rotate_and_store(*theirs, **how)
    out = torch.full_like(wanted, float("nan"))
    assert rotate(*ours, **how, out=out) is out
    assert rotate(*ours, **how).shape == wanted.shape
    for got, expected in ((out, wanted), (ours[1], theirs[1]), (ours[2], theirs[2])):
        same_scale = (got - expected).abs() <= limit * torch.finfo(dtype).eps * expected.abs().amax()
        assert same_scale.all() if limit else ulps_apart(got, expected) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_its_definition(case: dict[str, Any], dtype: torch.dtype) -> None:
    assert_it_is_its_definition(rotate_and_store, case, dtype)


def in_few_calls(
    qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
    positions: torch.Tensor, lengths: torch.Tensor, *, out: torch.Tensor | None = None, **how: Any,
) -> torch.Tensor:  # fmt: skip
    assert not how.pop("interleaved")
    found = rotate_and_store_at(qkv, keys, values, turns_at(cos, sin, positions, lengths), **how)
    return found if out is None else out.copy_(found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "case", [CASES[0], CASES[1], {"width": 16, "turned": 8, "normed": True}, {"width": 20, "turned": 6}], ids=str
)
def test_where_the_host_knows_the_place_it_is_its_definition(
    case: dict[str, Any], rows: int, dtype: torch.dtype
) -> None:
    assert_it_is_its_definition(in_few_calls, {**case, "rows": rows}, dtype)


def test_a_table_of_sines_is_not_written_to() -> None:
    tensors, _ = inputs()
    before = tensors[4].clone()
    turns_at(*tensors[3:])
    turns_at(*tensors[3:5], tensors[5][:1], tensors[6])
    assert torch.equal(tensors[4], before)


def test_the_key_and_the_value_are_written_where_the_row_ends() -> None:
    tensors, how = inputs(lengths=(7, 3, 1))
    before = tensors[2].clone()
    rotate_and_store(*tensors, **how)
    changed = (tensors[2] != before).any(-1).any(-1)
    assert changed.nonzero().tolist() == [[0, 6], [1, 2], [2, 0]]
    assert torch.equal(tensors[2][1, 2].flatten(), tensors[0][1, -16:])


def test_the_backend_on_a_cpu_is_torch() -> None:
    assert choose_rotary_store_backend(*inputs()[0][:5]) == "torch"
