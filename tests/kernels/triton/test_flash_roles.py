"""The flash kernel whose warps take roles, against attention as it is defined on a GPU, and as compiled for one.

Triton's interpreter does not know the language it is written in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from inference_pio.compat import has_warp_roles
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.triton.flash_launch import choose_flash_launch
from inference_pio.kernels.triton.launch import HOPPER
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.triton.test_flash import Case, assert_close, check_dense, check_rows, check_sparse, int32

needs_roles = pytest.mark.skipif(not has_warp_roles(), reason="this Triton has no roles for warps as we write them")


def served(query: torch.Tensor, key: torch.Tensor, **asked: Any) -> bool:
    from inference_pio.kernels.triton.flash import roles_launch_for

    out = asked.pop("out", None)
    given = torch.empty_like(query) if out is None else out
    return roles_launch_for(query, key, asked.pop("value", key), given, **asked) is not None


def lists(query_block: int = 128, key_block: int = 128) -> BlockList:
    return BlockList.from_kept(torch.ones(1, 8, 1, 1, dtype=torch.bool), query_block, key_block)


@needs_roles
def test_it_serves_what_the_copy_engine_can_address_and_lists_of_its_own_blocks() -> None:
    """Where there is no GPU, limits are those of an H100."""
    query, key, _ = Case(heads=8, key_heads=2, width=128).tensors("cpu")
    assert served(query, key)
    assert served(query, key, padded=True)
    assert served(query, key, padded=True, causal=False)
    assert not served(query, key, causal=False)
    assert served(query, key, lists=lists(), causal=False)
    assert served(query, key, lists=lists(key_block=64))
    assert not served(query, key, lists=lists(key_block=256))
    assert not served(query, key, lists=lists(query_block=64))
    assert not served(query, key, lists=lists(), padded=True)
    assert not served(query, key, out=torch.empty_like(query, dtype=torch.float32))
    assert not served(query, key.expand(2, -1, -1, -1))
    odd = torch.empty(key.numel() + 1, dtype=key.dtype)[1:].view(key.shape)
    assert not served(query, odd)
    assert not served(query, key, value=odd)
    wide, wide_key, _ = Case(heads=8, key_heads=2, width=256).tensors("cpu")
    assert not served(wide, wide_key)


@needs_roles
def test_interpreted_kernels_take_no_roles() -> None:
    asked = "from inference_pio.compat import has_warp_roles; print(has_warp_roles())"
    found = subprocess.run(
        [sys.executable, "-c", asked], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "False"


COMPILED = [
    (width, kind, causal)
    for width in (128, 64)
    for kind in ("plain", "padded", "listed by 64", "listed by 128")
    for causal in (True, False)
    if causal or kind != "plain"
]


@needs_roles
@pytest.mark.parametrize(("width", "kind", "causal"), COMPILED)
def test_it_compiles_to_products_beside_which_scores_are_weighed(
    width: int, kind: str, causal: bool, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton.flash import flash_attention
    from inference_pio.kernels.triton.flash_roles import flash_roles_kernel

    compiler.for_machine(90, flash_roles_kernel)
    case = Case(heads=8, key_heads=2, width=width, causal=causal)
    options: dict[str, Any] = {"starts": int32((1,), "cpu")} if kind == "padded" else {}
    if kind == "padded":
        options["lse"] = torch.empty(1, 8, 37)
    if kind.startswith("listed"):
        options["lists"] = lists(key_block=int(kind.split()[-1]))
    flash_attention(*case.tensors("cpu"), causal=causal, **options)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[90])
    assert code.counts["UTMALDG"], code
    assert not code.counts["LDGSTS"] + code.counts["HMMA"], code
    # Where a step's scores are weighed, the product of the step before is waited for behind that and not before it:
    # by each warpgroup, with a mask and without.
    steps = "".join({"HGMMA": "p", "MUFU": "e", "DEPBAR": "w"}.get(word, "") for word in code.order)
    assert steps.count("w" + "e" * 66 + "w") == 4, steps


@needs_roles
@pytest.mark.parametrize("asked", ["ends", "certified", "launch"])
def test_what_it_does_not_do_goes_to_the_other_kernel(asked: str, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.flash import flash_attention, flash_kernel
    from inference_pio.kernels.triton.flash_roles import flash_roles_kernel

    compiler.for_machine(90, flash_kernel, flash_roles_kernel)
    given = {"ends": int32((30,), "cpu"), "certified": 1e-2, "launch": choose_flash_launch(HOPPER, 128)}
    flash_attention(*Case(heads=8, key_heads=2, width=128).tensors("cpu"), **{asked: given[asked]})
    assert [code.name for code in compiler.found] == ["flash_kernel"]


GPU_CASES = [
    {"queries": 1000, "keys": 1000},
    {"queries": 1000, "keys": 1000, "dtype": torch.float16, "scale": 0.3},
    {"queries": 1, "keys": 77},
    {"queries": 5, "keys": 3},
    {"queries": 129, "keys": 1024},
    {"batch": 3, "queries": 700, "keys": 700, "starts": (0, 130, 699)},
    {"batch": 3, "queries": 513, "keys": 600, "starts": (65, 600, 1)},
    {"batch": 2, "queries": 300, "keys": 1111, "starts": (7, 1111), "causal": False},
    {"queries": 4100, "keys": 4100, "heads": 6, "key_heads": 6},
    {"batch": 2, "queries": 2100, "keys": 5000, "heads": 20, "key_heads": 4},
]


@pytest.mark.gpu
@needs_roles
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_gpu_it_is_exact_up_to_rounding(case: dict[str, Any], width: int, by_roles: list[int]) -> None:
    for _ in range(2):  # a call that is looked for, and one that is kept
        check_dense(Case(**{"heads": 8, "key_heads": 2, "width": width, "launch": None, **case}), "cuda")
    assert len(by_roles) == 2


@pytest.mark.gpu
@needs_roles
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4, 1.1])
@pytest.mark.parametrize(("queries", "keys", "key_block"), [(1000, 1000, 128), (700, 1500, 128), (1024, 1024, 64),
                                                             (999, 1490, 64)])  # fmt: skip
def test_gpu_lists_of_blocks_are_exact_up_to_rounding(
    queries: int, keys: int, key_block: int, density: float, causal: bool, width: int, by_roles: list[int]
) -> None:
    case = Case(batch=2, heads=8, key_heads=2, queries=queries, keys=keys, width=width, causal=causal, launch=None)
    for _ in range(2):
        check_sparse(case, key_block, density, "cuda")
    assert len(by_roles) == 2


@pytest.mark.gpu
@needs_roles
@pytest.mark.parametrize("width", [64, 128])
def test_gpu_what_lies_behind_the_keys_is_not_read_and_rows_that_see_none_are_zero(
    width: int, by_roles: list[int]
) -> None:
    """A cache holds more places than keys; and infinity, of which a row sees nothing, is no NaN to it."""
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = Case(heads=8, key_heads=2, queries=200, keys=150, width=width).tensors("cuda")
    held = [torch.full((1, 2, 400, width), float("nan"), dtype=key.dtype, device="cuda") for _ in range(2)]
    for room, keys in zip(held, (key, value), strict=True):
        room[:, :, :150] = keys
    out = flash_attention(query, *(room[:, :, :150] for room in held))
    wanted = naive_attention(query[:, :, 50:], key, value, causal=True)
    assert_close(out[:, :, 50:], wanted, "cuda")
    assert bool((out[:, :, :50] == 0).all())
    value[:, :, 0] = float("inf")
    out = flash_attention(query, key, value)
    assert bool((out[:, :, :50] == 0).all())
    assert bool(out[:, :, 50:].isinf().all())
    assert len(by_roles) == 2


@pytest.mark.gpu
@needs_roles
@pytest.mark.parametrize("key_block", [64, 128])
@pytest.mark.parametrize("density", [None, 0.125])
def test_gpu_long_texts_are_exact_up_to_rounding(density: float | None, key_block: int, by_roles: list[int]) -> None:
    case = Case(heads=32, key_heads=8, queries=16384, keys=16384, width=128, launch=None)
    check_rows(case, key_block, density, "cuda")
    assert by_roles


@pytest.mark.gpu
@needs_roles
def test_gpu_tiles_go_to_whom_is_free_and_the_result_is_the_same(by_roles: list[int]) -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = Case(batch=2, heads=16, key_heads=4, queries=3000, keys=3000, width=128).tensors("cuda")
    first = flash_attention(query, key, value)
    assert all(torch.equal(first, flash_attention(query, key, value)) for _ in range(20))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = flash_attention(query, key, value)
    again.zero_()
    for _ in range(3):
        graph.replay()
        assert torch.equal(first, again)
    assert by_roles


@pytest.fixture
def by_roles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The programs of each launch in a test, which must not be served by the other kernel unnoticed."""
    from inference_pio.kernels.triton.roles_call import RolesCall

    launches: list[int] = []
    attend = RolesCall.__call__

    def noted(call: RolesCall, *tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        launches.append(call.programs)
        return attend(call, *tensors, **options)

    monkeypatch.setattr(RolesCall, "__call__", noted)
    return launches
