"""Products with weights in 12 bits have the bits of products with plain ones: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import Packed, pack
from inference_pio.kernels.triton.gemv_choice import choose_exact_launch, choose_gemv_launch
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from tests.kernels.test_exponent12 import trained
from tests.kernels.triton.compiling import MACHINES, Code, Compiler
from tests.sweep import turn_of_this_commit

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


SHORT = GemvLaunch(1, 128, 1)


@dataclass(frozen=True)
class Case:
    """Sizes, what stands around the product, and how plain weights are launched; None: by rule. `odd`: x begins in the
    middle of a word."""

    batch: int = 1
    inputs: int = 160
    outputs: tuple[int, ...] = (5,)
    plain: GemvLaunch | None = SHORT
    biased: tuple[bool, ...] | None = None
    normed: bool = False
    gated: bool = False
    added: bool = False
    odd: bool = False

    @property
    def columns(self) -> int:
        return self.outputs[0] if self.gated else sum(self.outputs)


def awkward(rows: int, inputs: int, seed: int) -> torch.Tensor:
    """Weights among which are all kinds that have no index: in first and last columns, and several in one step."""
    chance = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(torch.randint(-9, 3, (rows, 1), generator=chance))
    weights = (torch.randn(rows, inputs, generator=chance) * 0.02 * sizes).bfloat16()
    weights[0, 0], weights[0, -1] = 2.0**-60, 0.0
    weights[-1, 0], weights[-1, -1] = -0.0, 1e-40
    weights[rows // 2, 9:12] = 2.0**-50
    weights[rows // 2, 13] = -(2.0**20)
    if rows > 8:
        weights[1], weights[2] = 0.0, torch.linspace(-1, 1, inputs) * 1e-38  # nothing, and nothing but subnormals
        weights[6, -2] = 0.0  # alone in its row, in the last step
        weights[4, 1::64], weights[5, 14:17] = 0.0, 2.0**-40
    return weights


def problem(case: Case, device: str = "cpu") -> tuple[torch.Tensor, list[torch.Tensor], dict[str, Any]]:
    chance = torch.Generator().manual_seed(case.inputs)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance).to(device, torch.bfloat16)

    x = numbers(case.batch, case.inputs + 16)[:, case.odd : case.inputs + case.odd]
    weights = [awkward(rows, case.inputs, seed).to(device) for seed, rows in enumerate(case.outputs)]
    given: dict[str, Any] = {"gated": case.gated}
    if case.normed:
        given |= {"norm_weight": numbers(case.inputs), "eps": 1e-6}
    if case.biased is not None:
        each = zip(case.outputs, case.biased, strict=True)
        given["biases"] = [numbers(rows) if biased else None for rows, biased in each]
    if case.added:
        given["residual"] = numbers(case.batch, case.columns)
    return x, weights, given


def plain_launch(case: Case, limits: Any, dependent: bool = False) -> GemvLaunch:
    rows = sum(case.outputs)
    return case.plain or choose_gemv_launch(
        limits, case.batch, rows, case.inputs, 2, gated=case.gated, dependent=dependent
    )


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.exponent12_gemv import exact_gemv
    from inference_pio.kernels.triton.gemv import gemv
    from inference_pio.kernels.triton.launch import device_limits

    x, weights, given = problem(case, device)
    packed = [pack(weight) for weight in weights]
    assert all(each.places.numel() >= 2 for each in packed)
    limits = device_limits(x.device)
    plain = plain_launch(case, limits)
    wanted, found = (torch.full((case.batch, case.columns), torch.nan, device=device) for _ in range(2))
    gemv(**as_read_there(x, weights, given), out=wanted, launch=plain)
    chosen = choose_exact_launch(limits, sum(case.outputs), plain.columns, gated=case.gated)
    warps = max(1, plain.columns // 512)
    launches = {chosen, GemvLaunch(1 if chosen.rows > 1 or plain.columns > 512 else 4, plain.columns, warps)}
    if plain.columns >= 512 * warps:
        launches.add(GemvLaunch(2, plain.columns, 2 * warps))
    launches |= {GemvLaunch(2, plain.columns // folds, 1) for folds in (2, 4) if plain.columns >= 128 * folds}
    given["columns"] = plain.columns
    for launch in launches:
        exact_gemv(x, packed, out=found.fill_(torch.nan), launch=launch, **given)
        assert torch.equal(found, wanted), launch
    if device != "cpu":  # rounding to bfloat16 is not a GPU's in the interpreter
        rounded = exact_gemv(x, packed, launch=chosen, **given)
        del given["columns"]
        assert torch.equal(rounded, gemv(x, weights, launch=plain, **given))


def as_read_there(x: torch.Tensor, weights: list[torch.Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """The interpreter makes wrong numbers of bfloat16 that are subnormal: there plain weights are float32."""
    everything = {"x": x, "weights": weights, **given}
    return everything if x.is_cuda else {name: in_float32(value) for name, value in everything.items()}


def in_float32(value: Any) -> Any:
    if isinstance(value, list):
        return [in_float32(one) for one in value]
    return value.float() if isinstance(value, torch.Tensor) else value


MANY_STEPS = Case(inputs=4496, outputs=(1,), normed=True)  # more than a word has bits
EVERYTHING = Case(outputs=(9, 9), biased=(True, True), normed=True, gated=True, added=True)
FOLDED = replace(EVERYTHING, inputs=656, outputs=(3, 3), plain=GemvLaunch(1, 512, 1))  # a fold has a step less
MANY_FOLDS = Case(inputs=528, outputs=(8,), plain=GemvLaunch(1, 512, 1))  # nothing hides the order of four folds
CASES = [
    Case(outputs=(19,)), Case(inputs=16, outputs=(1,)), EVERYTHING,
    Case(inputs=144, outputs=(3, 9, 2), normed=True, biased=(True, False, True), added=True),
    Case(2, 272, (6, 2), plain=GemvLaunch(2, 256, 2), normed=True), replace(EVERYTHING, batch=2, biased=(False, True)),
    Case(inputs=528, outputs=(1,), plain=GemvLaunch(1, 512, 1), added=True),
    pytest.param(MANY_STEPS, marks=pytest.mark.slow),
    Case(inputs=320, outputs=(3,), plain=None),
    Case(2, 272, (3,), plain=GemvLaunch(1, 256, 1), normed=True, odd=True),
    pytest.param(FOLDED, marks=[] if turn_of_this_commit() % 8 == 2 else pytest.mark.slow),
    Case(inputs=144, outputs=(2,), plain=GemvLaunch(1, 512, 1)),  # two of four folds have none
    pytest.param(MANY_FOLDS, marks=[] if turn_of_this_commit() % 8 == 1 else pytest.mark.slow),
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_bits_are_those_of_plain_weights_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


def check_refusals() -> None:
    from inference_pio.kernels.triton.exponent12_gemv import exact_gemv

    x, packed = torch.ones(1, 32).bfloat16(), pack(trained(20, 32))
    apart = packed._replace(codes=packed.codes.t().contiguous().t())
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (x.repeat(3, 1), [packed], {}, "1 to 2 rows, and x has 3"), (x[:, :16], [packed], {}, "does not take x of 16"),
        (x.double(), [packed], {}, "for bfloat16, float16 or float32"),
        (x, [packed], {"biases": [torch.ones(3)]}, "biases of shapes"), (x, [apart], {}, "side by side"),
        (x, [packed], {"gated": True}, "give two"),
        (x, [packed], {"launch": GemvLaunch(32, 128, 1)}, "up to 16 rows"),
        (x, [packed], {"launch": GemvLaunch(1, 64, 1)}, "128 columns or more"),
        (x, [packed] * 2, {"biases": [torch.ones(20), torch.ones(20).bfloat16()]}, "biases of several dtypes"),
        (x, [packed], {"launch": GemvLaunch(16, 64, 1, stages=2)}, "without `stages`"),
        (x, [packed], {"launch": GemvLaunch(1, 128, 1), "columns": 1024}, "bits of steps of 1024 columns"),
        (x, [packed], {"launch": GemvLaunch(1, 256, 1), "columns": 128}, "a half or a quarter"),
        (x.clone().requires_grad_(), [packed], {}, "no backward"),
    ]  # fmt: skip
    for given, parts, named, said in wrong:
        with pytest.raises(InvalidSetting, match=said):
            exact_gemv(given, parts, **named)


@needs_triton
def test_what_it_cannot_serve_is_refused_with_the_reason(interpreted: Callable[..., None]) -> None:
    interpreted(check_refusals)


@needs_triton
def test_without_a_gpu_it_says_so() -> None:
    from inference_pio.kernels.triton.exponent12_gemv import exact_gemv

    with pytest.raises(InvalidSetting, match="it needs an NVIDIA GPU"):
        exact_gemv(torch.ones(1, 32), [pack(trained(16, 32))])


# ---------------------------------------------------------------- machine code

REAL = {
    "qkv": Case(inputs=2560, outputs=(4096, 1024, 1024), normed=True, plain=None),
    "attention_out": Case(inputs=4096, outputs=(2560,), added=True, plain=None),
    "gate_up": Case(inputs=2560, outputs=(9728, 9728), normed=True, gated=True, plain=None),
    "down": Case(inputs=9728, outputs=(2560,), added=True, plain=None),
}


def of_zeros(rows: int, inputs: int) -> Packed:
    made = pack(torch.empty(rows, inputs, dtype=torch.bfloat16, device="meta"))
    return Packed(*(torch.zeros(part.shape, dtype=part.dtype) for part in made))


def compiled(compiler: Compiler, capability: int, case: Case, dependent: bool = False) -> tuple[Code, GemvLaunch]:
    from inference_pio.kernels.triton.exponent12_gemv import exact_gemv, exact_gemv_kernel

    compiler.for_machine(capability, exact_gemv_kernel)
    limits, kind = MACHINES[capability], torch.bfloat16
    plain = plain_launch(case, limits, dependent)
    launch = choose_exact_launch(limits, sum(case.outputs), plain.columns, gated=case.gated, dependent=plain.dependent)
    exact_gemv(
        torch.empty(case.batch, case.inputs, dtype=kind), [of_zeros(rows, case.inputs) for rows in case.outputs],
        gated=case.gated, columns=plain.columns, launch=launch,
        norm_weight=torch.empty(case.inputs, dtype=kind) if case.normed else None,
        residual=torch.empty(case.batch, case.columns, dtype=kind) if case.added else None,
    )  # fmt: skip
    [code] = compiler.found
    print(f"{launch}: {code}")
    return code, launch


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", REAL)
def test_real_shapes_compile_to_wide_loads_without_spilling(
    name: str, batch: int, capability: int, compiler: Compiler
) -> None:
    case = replace(REAL[name], batch=batch)
    code, launch = compiled(compiler, capability, case)
    code.assert_it_fits(MACHINES[capability])
    assert code.registers * code.threads <= 65536 // 8, code
    together = launch.rows * (2 if case.gated else 1)
    held = together * launch.columns // (32 * launch.warps)  # weights of a thread in one step
    assert held * batch <= code.counts["FFMA"] <= 2 * held * batch + 100, code
    tiles = held // 16 * 2 if launch.columns >= 512 * launch.warps else held // 8 * 3
    assert code.counts["LDG 128" if launch.columns >= 512 * launch.warps else "LDG 64"] >= tiles, code


@needs_triton
@pytest.mark.parametrize("name", ["attention_out", "down"])
def test_parts_of_wide_steps_leave_room_for_all_programs_at_once(name: str, compiler: Compiler) -> None:
    code, launch = compiled(compiler, 90, replace(REAL[name], plain=GemvLaunch(1, 2048, 2)))
    assert launch.columns == 1024
    code.assert_it_fits(MACHINES[90])
    programs = -(-2560 // (launch.rows * MACHINES[90].multiprocessors))
    assert programs * code.threads * code.registers <= 65536, code


@needs_triton
@pytest.mark.parametrize("name", REAL)
def test_a_dependent_kernel_reads_weights_and_lists_before_it_waits(name: str, compiler: Compiler) -> None:
    code, _ = compiled(compiler, 90, REAL[name], dependent=True)
    wait = code.order.index("ACQBULK")
    before, after = code.order[:wait], code.order[wait:]
    assert "PREEXIT" in before
    assert (
        sum(kind.startswith("LDG") for kind in before) >= 2 + 1 + 2
    )  # a tile's codes and indices, a list and its ends
    assert not any(kind.startswith("STG") for kind in before)
    assert any(kind.startswith("STG") for kind in after)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_its_bits_are_those_of_plain_weights(case: Case) -> None:
    check(case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "columns"), [(1, None), (2, None), (1, 256), (1, 512), (1, 1024), (1, 2048)])
@pytest.mark.parametrize("name", REAL)
def test_gpu_so_they_are_at_real_shapes(name: str, batch: int, columns: int | None) -> None:
    plain = None if columns is None else GemvLaunch(1, columns, max(1, columns // 512))
    check(replace(REAL[name], batch=batch, plain=plain), "cuda")
