"""A call of the kernel whose warps take roles, again with other tensors of the same form."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from inference_pio.compat import has_warp_roles
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.block_sparse import BlockList
from tests.kernels.triton.compiling import Compiler
from tests.kernels.triton.test_flash import Case, assert_close

pytestmark = pytest.mark.skipif(not has_warp_roles(), reason="this Triton has no roles for warps as we write them")


class Launched:
    """What a compiled kernel was launched with, in place of a GPU."""

    def __init__(self) -> None:
        self.grids: list[Any] = []
        self.given: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: Any) -> Any:
        self.grids.append(grid)
        return lambda *arguments, stream: self.given.append(arguments)


@pytest.fixture
def launched(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> Launched:
    from inference_pio.kernels.triton import flash
    from inference_pio.kernels.triton.flash_roles import flash_roles_kernel
    from inference_pio.kernels.triton.kept_calls import KeptCalls

    compiler.for_machine(90, flash_roles_kernel)
    found, compile_only = Launched(), flash_roles_kernel.run

    def compiled(*arguments: Any, **options: Any) -> Launched:
        compile_only(*arguments, **options)
        found.given.append(arguments)
        return found

    monkeypatch.setattr(flash_roles_kernel, "run", compiled)
    monkeypatch.setattr(flash, "KEPT", KeptCalls())
    return found


def drawn(**how: Any) -> tuple[torch.Tensor, ...]:
    return Case(**{"heads": 8, "key_heads": 2, "width": 128, **how}).tensors("cpu")


def test_the_kernel_is_looked_for_once_and_given_what_belongs_to_each_call(
    launched: Launched, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton import flash
    from inference_pio.kernels.triton.flash_roles import flash_roles_kernel

    calls, scales = [drawn() for _ in range(3)], (None, 0.5, None)
    results = [flash.flash_attention(*tensors, scale=scale) for tensors, scale in zip(calls, scales, strict=True)]
    assert len(compiler.found) == 1
    assert launched.grids == [(8, 1, 1)]
    names = flash_roles_kernel.arg_names
    for given, tensors, out, scale in zip(launched.given, calls, results, (128**-0.5, 0.5, 128**-0.5), strict=True):
        told = dict(zip(names, given, strict=False))
        assert told["scale"] == scale
        for name, tensor in zip(("query_rows", "key_rows", "value_rows", "out_rows"), (*tensors, out), strict=True):
            assert told[name].base is tensor, name
            assert list(told[name].shape) == list(tensor.shape)
            assert list(told[name].strides) == list(tensor.stride())
    assert len({given[names.index("slot")] for given in launched.given}) == 3
    # Constants stand behind the rest, in the kernel's own order.
    first, *others = launched.given
    (call,) = flash.KEPT.values()
    assert list(call.constants) == names[len(first) :]  # type: ignore[attr-defined]
    assert [other[len(first) :] for other in others] == [tuple(call.constants.values())] * 2  # type: ignore[attr-defined]


def test_a_scale_is_never_compiled_in(launched: Launched) -> None:
    """Triton would make a constant of the integer 1."""
    from inference_pio.kernels.triton import flash
    from inference_pio.kernels.triton.flash_roles import flash_roles_kernel

    for scale in (1, 2, 0.5):
        flash.flash_attention(*drawn(), scale=scale)
    place = flash_roles_kernel.arg_names.index("scale")
    found = [given[place] for given in launched.given]
    assert found == [1.0, 2.0, 0.5]
    assert all(isinstance(scale, float) for scale in found)


@pytest.mark.parametrize("key_block", [64, 128])
def test_lists_are_those_of_each_call(key_block: int, launched: Launched) -> None:
    from inference_pio.kernels.triton import flash
    from inference_pio.kernels.triton.flash_roles import flash_roles_kernel

    kept = torch.ones(1, 8, 1, 2, dtype=torch.bool)
    for width in (1, 2):  # lists that are longer are of the same form
        lists = BlockList.from_kept(kept[..., :width], 128, key_block)
        flash.flash_attention(*drawn(), lists=lists)
        told = dict(zip(flash_roles_kernel.arg_names, launched.given[-1], strict=False))
        assert told["counts"] is lists.counts
        assert told["indices"] is lists.indices
        assert told["list_length"] == lists.indices.shape[-1]
        assert (told["starts"], told["lse"]) == (None, None)
    assert len(flash.KEPT) == 1


def test_starts_and_sums_are_those_of_each_call(launched: Launched) -> None:
    from inference_pio.kernels.triton import flash
    from inference_pio.kernels.triton.flash_roles import flash_roles_kernel

    for _ in range(2):
        starts, lse = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 8, 37)
        flash.flash_attention(*drawn(), starts=starts, lse=lse)
        told = dict(zip(flash_roles_kernel.arg_names, launched.given[-1], strict=False))
        assert told["starts"] is starts
        assert told["lse"] is lse
        assert (told["counts"], told["indices"], told["list_length"]) == (None, None, 0)
    assert len(flash.KEPT) == 1


def test_what_is_kept_holds_no_tensor(launched: Launched) -> None:
    from inference_pio.kernels.triton import flash

    flash.flash_attention(*drawn())
    (call,) = flash.KEPT.values()
    assert [tiles["base"] for tiles in call.tiles] == [None] * 4  # type: ignore[attr-defined]


def test_another_form_is_another_call(launched: Launched) -> None:
    from inference_pio.kernels.triton import flash

    flash.flash_attention(*drawn())
    flash.flash_attention(*drawn(), causal=True, starts=torch.zeros(1, dtype=torch.int32))
    flash.flash_attention(*drawn(keys=77))
    assert len(flash.KEPT) == 3


def test_a_kept_call_refuses_what_the_first_would_have(launched: Launched) -> None:
    from inference_pio.kernels.triton import flash

    query, key, value = drawn()
    flash.flash_attention(query, key, value)
    with pytest.raises(InvalidSetting, match="backward"):
        flash.flash_attention(query.requires_grad_(), key, value)
    assert len(launched.given) == 1


@pytest.mark.gpu
def test_gpu_calls_of_one_form_see_their_own_tensors() -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    stream = torch.cuda.Stream()
    case = Case(heads=8, key_heads=2, queries=300, keys=700, width=128)
    for _ in range(4):
        query, key, value = (torch.randn_like(tensor) for tensor in case.tensors("cuda"))
        wanted = naive_attention(query, key, value, case.seen("cuda"))
        assert_close(flash_attention(query, key, value), wanted, "cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            assert_close(flash_attention(query, key, value), wanted, "cuda")
        torch.cuda.synchronize()


@pytest.mark.gpu
def test_gpu_threads_and_streams_share_a_call() -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    case = Case(batch=2, heads=16, key_heads=4, queries=2000, keys=2000, width=128)
    tensors = [[torch.randn_like(tensor) for tensor in case.tensors("cuda")] for _ in range(3)]
    wanted = [flash_attention(*each) for each in tensors]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            same = [torch.equal(flash_attention(*tensors[number]), wanted[number]) for _ in range(400)]
            wrong.extend([number] * same.count(False))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
def test_gpu_a_tensor_that_begins_elsewhere_goes_to_the_other_kernel() -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = Case(heads=8, key_heads=2, queries=300, keys=300, width=128).tensors("cuda")
    wanted = flash_attention(query, key, value)
    odd = torch.empty(key.numel() + 1, dtype=key.dtype, device="cuda")[1:].as_strided(key.shape, key.stride())
    odd.copy_(key)
    assert_close(flash_attention(query, odd, value), wanted.float(), "cuda")
