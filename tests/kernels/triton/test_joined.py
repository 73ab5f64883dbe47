"""The kernel that joins two attentions against the plain truth: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.joined_attention import joined_attention, naive_join
from tests.kernels.test_joined_attention import CLOSE, drawn, true
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SHAPES = [(1, 1, 1, 64), (2, 3, 37, 128), (1, 2, 65, 256)]


def check(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.joined import join

    rows, heads, tokens, width = shape
    given = [drawn(rows, heads, tokens, width, seed, dtype).to(device) for seed in range(2)]
    for out, other in (given, [given[0].contiguous(), given[1]], [given[0], given[1].contiguous()]):
        logs, others = (torch.randn(rows, heads, tokens, device=device) * size for size in (1, 60))
        logs[..., :1], others[..., :1] = 90.0, -90.0
        wanted = naive_join(out, logs, other, others)
        out = out.clone()
        assert join(out, logs, other, others) is out
        assert ((out.float() - wanted).abs() / wanted.abs().clamp(min=1)).max() < CLOSE[dtype]


@needs_triton
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_it_joins_as_the_plain_truth_does_in_the_interpreter(
    shape: tuple[int, int, int, int], dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, dtype)


def check_far_apart() -> None:
    """Heads of 2**30 numbers each, of which memory holds those that are touched."""
    from inference_pio.kernels.triton.joined import join

    room, logs = torch.empty(2**31 + 128, dtype=torch.bfloat16), torch.randn(1, 3, 2)
    out, other = room.as_strided((1, 3, 2, 64), (0, 2**30, 64, 1)), drawn(1, 3, 2, 64, 1, torch.bfloat16)
    out.copy_(drawn(1, 3, 2, 64, 0, torch.bfloat16))
    wanted = naive_join(out, logs, other, -logs)
    torch.testing.assert_close(join(out, logs, other, -logs).float(), wanted, atol=1e-2, rtol=1e-2)


@needs_triton
def test_heads_may_lie_further_apart_than_32_bits_count(interpreted: Callable[..., None]) -> None:
    interpreted(check_far_apart)


@needs_triton
def test_what_it_cannot_serve_is_refused(compiler: Compiler) -> None:
    from inference_pio.kernels.triton import joined as room

    out, logs = torch.zeros(1, 2, 3, 64), torch.zeros(1, 2, 3)
    with pytest.raises(InvalidSetting, match="does not serve here"):
        room.join(out.double(), logs, out.double(), logs)
    compiler.for_machine(90, room.join_kernel)
    for shapes in ((out, logs[..., :2], out, logs), (out, logs, out[..., :2, :], logs), (out[..., :48],) * 4):
        with pytest.raises(InvalidSetting, match=r"are joined: \(1, 2, 3, (64|48)\)"):
            room.join(*shapes)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, width: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.joined import join, join_kernel

    compiler.for_machine(capability, join_kernel)
    out, logs = torch.zeros(1, 2048, 32, width, dtype=torch.bfloat16).transpose(1, 2), torch.zeros(1, 32, 2048)
    join(out, logs, out.clone(), logs)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128"] == 8, code
    assert code.counts["STG 128"] == 4, code
    assert not code.counts["LDG U16"], code


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 32, 2048, 128), (1, 8, 4100, 64)])
def test_gpu_it_joins_as_the_plain_truth_does(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(shape, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("queries", "keys"), [(37, 300), (1024, 3072), (2048, 4096)])
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 2), (4, 4)])
def test_gpu_two_calls_of_cudnns_are_one_attention(
    queries: int, keys: int, heads: int, key_heads: int, dtype: torch.dtype
) -> None:
    query = drawn(2, heads, queries, 128, 0, dtype).cuda()
    key, value = (drawn(2, key_heads, keys, 128, seed, dtype).cuda().contiguous() for seed in (1, 2))
    found, wanted = joined_attention(query, key, value), true(query, key, value)
    assert found.transpose(1, 2).is_contiguous(), "heads of a token side by side, so that nothing is copied behind it"
    assert ((found.float() - wanted).abs() / wanted.abs().clamp(min=1)).max() < CLOSE[dtype]
