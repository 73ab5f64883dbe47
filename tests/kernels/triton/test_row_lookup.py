"""The look-up of rows of codes against the plain truth: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.row_lookup import naive_row_lookup
from tests.formats.help import seeded
from tests.kernels.test_row_lookup import MAKE
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SHAPES = [(131, 64, 3), (7, 33, 1), (3, 1, 5), (4, 8, 0), (300, 200, 8)]


def check(kind: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    """The bits of the whole table's rows, for ids of both widths and for a table that is part of a wider one."""
    from inference_pio.kernels.triton.row_lookup import row_lookup

    tokens, width, count = shape
    codes, scale = (part.to(device) for part in MAKE[kind](seeded(tokens, width)))
    wider = torch.cat([codes, codes], 1)[:, :width]
    ids = torch.randint(tokens, (count,), generator=torch.Generator().manual_seed(1)).to(device)
    for given, held in ((ids, codes), (ids.int(), wider)):
        found = row_lookup(given, held, scale, dtype)
        assert torch.equal(found, naive_row_lookup(ids, codes, scale, dtype))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_rows_of_the_table_in_the_interpreter(
    kind: str, shape: tuple[int, int, int], dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, kind, shape, dtype)


def refusals() -> None:
    from inference_pio.kernels.triton.row_lookup import row_lookup

    ids, codes, scale = torch.arange(2), torch.zeros(4, 8, dtype=torch.int8), torch.ones(4)
    for given, reason in (
        ((ids[None], codes, scale, torch.bfloat16), "ids are"),
        ((ids, codes.float(), scale, torch.bfloat16), "codes of a byte"),
        ((ids, codes, scale, torch.float64), "float64"),
        ((ids, codes.t(), scale, torch.bfloat16), "side by side"),
    ):
        with pytest.raises(InvalidSetting, match=reason):
            row_lookup(*given)


@needs_triton
def test_what_it_cannot_serve_is_refused(interpreted: Callable[..., None]) -> None:
    interpreted(refusals)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8], ids=["int8", "fp8"])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, kind: torch.dtype, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.row_lookup import row_lookup, row_lookup_kernel

    compiler.for_machine(capability, row_lookup_kernel)
    codes, scale = torch.zeros(64, 2560, dtype=kind), torch.ones(64, dtype=torch.bfloat16)
    row_lookup(torch.zeros(1, dtype=torch.int64), codes, scale, torch.bfloat16)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["STG 128"] >= 1, code


@needs_triton
def test_it_waits_before_the_kernel_behind_it_may_begin(compiler: Compiler) -> None:
    """Attention reads what was counted in front of it before it waits, and products let it begin before they do."""
    from inference_pio.kernels.triton.row_lookup import row_lookup, row_lookup_kernel

    compiler.for_machine(90, row_lookup_kernel)
    codes, scale = torch.zeros(64, 2560, dtype=torch.int8), torch.ones(64, dtype=torch.bfloat16)
    row_lookup(torch.zeros(1, dtype=torch.int64), codes, scale, torch.bfloat16, dependent=True)
    order = compiler.found[0].order
    assert order.index("ACQBULK") < order.index("PREEXIT")
    assert not any(kind.startswith(("LDG", "STG")) for kind in order[: order.index("ACQBULK")])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize("shape", [*SHAPES, (1000, 2560, 8)], ids=str)
def test_gpu_it_is_the_rows_of_the_table(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(kind, shape, dtype, "cuda")
