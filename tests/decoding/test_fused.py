"""The operations as few kernels: near the library, interpreted here and on a GPU; what they do not serve, others do."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.generation.logits_process import TemperatureLogitsWarper

from inference_pio import get_optimization_manager
from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.anatomy.decoder_norm import Norm
from inference_pio.compat import has_triton
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.sampling import Recipe, recipe_of
from inference_pio.decoding.slots import Slots
from inference_pio.decoding.takeover import engine_of
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.formats.exponent12 import Exponent12Linear
from inference_pio.formats.factored_linear import FactoredLinear, IntoFew
from inference_pio.formats.int8 import Int8Embedding
from tests import tiny
from tests.decoding.conftest import COMPOSED, in_words
from tests.decoding.test_step import both
from tests.sweep import in_its_turn, marks_of

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def near(name: str, dtype: torch.dtype, padded: int, device: str = "cpu") -> None:
    from inference_pio.decoding.fused import FusedOperations

    found, expected = both(name, dtype, padded, FusedOperations(), device)
    tolerance = 2e-5 if dtype == torch.float32 and device == "cpu" else 2e-3 if dtype == torch.float32 else 0.04
    assert (found - expected).abs().max().item() <= tolerance * expected.abs().max().item()


def shallow(name: str) -> Any:
    """One layer is enough for an interpreter."""
    config: Any = copy.deepcopy(tiny.build(name).config)
    config.num_hidden_layers, config.layer_types = 1, config.layer_types[:1]
    return tiny.build(name, config=config)


def compressed(name: str, form: str, device: str = "cpu") -> Any:
    model = (shallow(name) if device == "cpu" else tiny.build(name)).to(device)
    manager = get_optimization_manager()
    sizes = {"group_size": 32} if form == "int4" else {}
    manager.apply_optimizations(
        model, ["tensor_compression"], parameters={"tensor_compression": {"format": form, "least_share": 0.3, **sizes}}
    )
    if form == "int4":
        for module in model.modules():
            if isinstance(module, CompressedModule):
                in_words(module)
    return model


def near_over_codes(name: str, form: str, device: str = "cpu") -> None:
    """The step over compressed weights is the library's forward over the same, and our kernels compute it."""
    from inference_pio.decoding.fused import FusedOperations

    model, used = compressed(name, form, device), set[str]()
    with listening(used):
        found, expected = both(name, torch.float32, 0, FusedOperations(), device, model=model)
    tolerance = 2e-2 if device == "cpu" else 4e-3  # the library's products with codes are bfloat16 on a CPU
    assert (found - expected).abs().max().item() <= tolerance * expected.abs().max().item()
    assert "gemv" in used


def near_over_a_table(head: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """One table of codes is looked up and multiplied by our kernels, and gives what the library computes on it."""
    from inference_pio.decoding.fused import FusedOperations

    config = copy.deepcopy(tiny.build("qwen3").config)
    config.num_hidden_layers, config.layer_types = 1, config.layer_types[:1]
    model: Any = tiny.build("qwen3", dtype=dtype, config=config).to(device)
    asked = {"tensor_compression": {"head": head, "targets": ["head"]}}
    get_optimization_manager().apply_optimizations(model, ["tensor_compression"], parameters=asked)
    used, operations = set[str](), FusedOperations()
    operations.launches.listen()
    with listening(used):
        found, expected = both("qwen3", dtype, 0, operations, device, model=model)
    assert (found - expected).abs().max().item() <= 0.04 * expected.abs().max().item()
    heard = operations.launches._heard or {}
    sought = [problem.outputs for problem in heard if problem.int8 or problem.fp8]
    assert sought == [(128,)]
    assert {"gemv", "row_lookup"} <= used


def looked_up(dtype: torch.dtype) -> None:
    from inference_pio.decoding.fused import FusedOperations

    table, used = Int8Embedding.from_embedding(nn.Embedding(48, 64, dtype=dtype)), set[str]()
    ids = torch.tensor([3, 47])
    with listening(used):
        found = FusedOperations().embed(table, ids)
    assert torch.equal(found, table(ids))
    assert used == {"row_lookup"}


def projected_exactly() -> int:
    """Products over exponent12, merged, gated and added, have the bits of those over plain weights; how many did."""
    from inference_pio.decoding.fused import FusedOperations

    chance, same = torch.Generator().manual_seed(0), 0
    module = nn.RMSNorm(272, dtype=torch.bfloat16)
    norm = Norm(module, 1e-6)

    def linears(width: int, *outs: int, bias: bool = False) -> list[nn.Linear]:
        made = [nn.Linear(width, out, bias, dtype=torch.bfloat16) for out in outs]
        for linear in made:
            weight = torch.randn(linear.weight.shape, generator=chance) / 16
            weight[0, :3], weight[-1, -2:] = 2.0**-40, 0.0
            linear.weight = nn.Parameter(weight.bfloat16())
        return made

    for taken, rows, kept, how in (
        (linears(272, 5, 3, 2, bias=True), 1, (), {"norm": norm}),
        (linears(272, 4, 4), 1, (), {"norm": norm, "gated": True}),
        (linears(144, 6), 2, (), {"residual": torch.randn(2, 6, generator=chance).bfloat16()}),
        (linears(144, 3), 3, (), {}), (linears(144, 3, 5), 1, (1,), {}),
    ):  # fmt: skip
        x = torch.randn(rows, taken[0].in_features, generator=chance).bfloat16()
        packed = [
            linear if place in kept else Exponent12Linear.from_linear(linear) for place, linear in enumerate(taken)
        ]
        with torch.no_grad():
            found, expected = (FusedOperations().project(x, layers, **how) for layers in (packed, taken))
        assert torch.equal(found, expected), how
        same += 1
    return same


def forced(device: str) -> Any:
    """A model of odd sizes, some of whose weights have no index: zeros, tiny, subnormal, large ones, everywhere."""
    config: Any = copy.deepcopy(tiny.build("qwen3").config)
    config.num_hidden_layers, config.layer_types = 3, config.layer_types[:1] * 3
    config.hidden_size, config.intermediate_size = 272, 1040
    model = tiny.build("qwen3", dtype=torch.bfloat16, config=config).to(device)
    for number, layer in enumerate(model.modules()):
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                weight = layer.weight
                weight[0, 0], weight[0, -1], weight[-1, 0], weight[-1, -1] = 2.0**-60, 0.0, -0.0, 1e-40
                weight[number % len(weight), 5:12] = 2.0**-50
                weight[1, number % weight.shape[1]] = 4.0
                weight[2] = 0.0
    return model


def generated(model: Any, rows: int, **compression: Any) -> torch.Tensor:
    """Logits of some dozens of tokens that the engine decodes, perhaps over compressed weights."""
    names = [*(["tensor_compression"] if compression else []), "kernel_fusion"]
    parameters = {"kernel_fusion": {"level": "graph"}, **({"tensor_compression": compression} if compression else {})}
    get_optimization_manager().apply_optimizations(model, names, parameters=parameters)
    held = sum(isinstance(layer, Exponent12Linear) for layer in model.modules())
    assert held == ((7 - len(compression.get("skip", ()))) * 3 if compression else 0)
    tokens = torch.randint(1, 120, (rows, 9), generator=torch.Generator().manual_seed(1)).to(model.device)
    out = model.generate(
        tokens, max_new_tokens=48, min_new_tokens=48, do_sample=False, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    engine = engine_of(model)
    assert engine is not None
    assert not engine.counts.left, engine.counts.left
    return torch.stack(out.logits)


def factored(name: str, form: str, device: str = "cpu", residual: str | None = None, **more: Any) -> Any:
    """A model whose layers are in two factors, codes of them where a format is named, or beside codes."""
    model = shallow(name).to(device)
    asked = {"form": form, "calibration": "none", "allocation": "uniform", "refuse_slower": False, "residual": residual}
    manager = get_optimization_manager()
    manager.apply_optimizations(model, ["tensor_decomposition"], parameters={"tensor_decomposition": asked})
    if more:
        manager.apply_optimizations(model, ["tensor_compression"], parameters={"tensor_compression": more})
    return model


def projected_in_factors(pivots: bool) -> list[int]:
    """Products that our kernel computes for three layers of one input, a gate and a result; torch gives the same."""
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.decoding.operations import PlainOperations
    from inference_pio.kernels.triton import gemv as module

    chance, launched, original = torch.Generator().manual_seed(0), [], module.gemv

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) / shape[-1] ** 0.5

    def layers(width: int, *outs: int) -> list[FactoredLinear]:
        order = torch.randperm(width, generator=chance).to(torch.int32) if pivots else None
        first, *others = (nn.Linear(*shape[::-1], bias=False) for shape in (
            (8, width - 8 * pivots), *((out, 8) for out in outs)
        ))  # fmt: skip
        for linear in (first, *others):
            linear.weight = nn.Parameter(drawn(*linear.weight.shape))
        into = IntoFew(first, order, len(outs))
        return [FactoredLinear(into, other) for other in others]

    module_of_norm, x, counts = nn.RMSNorm(24), drawn(2, 24), list[int]()
    module_of_norm.weight = nn.Parameter(drawn(24))
    norm = Norm(module_of_norm, 1e-6)
    module.gemv = lambda *given, **how: launched.append(1) or original(*given, **how)
    try:
        for taken, how in (
            (layers(24, 16, 8, 8), {"norm": norm}), (layers(24, 40, 40), {"norm": norm, "gated": True}),
            (layers(24, 24), {"residual": drawn(2, 24)}),
        ):  # fmt: skip
            launched.clear()
            with torch.no_grad():
                found, expected = (kind.project(x, taken, **how) for kind in (FusedOperations(), PlainOperations()))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            counts.append(len(launched))
    finally:
        module.gemv = original
    return counts


def near_in_factors(name: str, form: str, device: str = "cpu", residual: str | None = None, **more: Any) -> int:
    """The step over factors is the library's forward over the same; how many products our kernel computed."""
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.kernels.triton import gemv as module

    launched, original = [], module.gemv
    module.gemv = lambda *given, **how: launched.append(1) or original(*given, **how)
    try:
        model = factored(name, form, device, residual, **more)
        found, expected = both(name, torch.float32, 0, FusedOperations(), device, model=model)
    finally:
        module.gemv = original
    tolerance = 2e-2 if more or residual else 2e-5 if device == "cpu" else 2e-3
    assert (found - expected).abs().max().item() <= tolerance * expected.abs().max().item()
    return len(launched)


@contextlib.contextmanager
def listening(used: set[str]) -> Iterator[None]:
    """Which kernels of ours are launched."""
    from inference_pio.kernels.triton import experts, gemv, routing, row_lookup

    kept = [(module, function, getattr(module, function)) for module, function in (
        (gemv, "gemv"), (routing, "route"), (experts, "expert_gate_up"), (experts, "expert_down"),
        (row_lookup, "row_lookup"),
    )]  # fmt: skip
    for module, function, original in kept:
        setattr(module, function, lambda *given, f=function, o=original, **how: used.add(f) or o(*given, **how))
    try:
        yield
    finally:
        for module, function, original in kept:
            setattr(module, function, original)


def kernels_used(name: str) -> set[str]:
    """The kernels of ours that one step of a tiny model launches."""
    from inference_pio.decoding.fused import FusedOperations

    used: set[str] = set()
    with listening(used):
        both(name, torch.float32, 0, FusedOperations())
    return used


def counters_of_a_router() -> list[list[int]]:
    """A router's scratch, by its address, and what its counters hold behind each of two calls."""
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.decoding.operations import PlainOperations

    decoder = decoder_of(tiny.build("glm4_moe"))
    assert isinstance(decoder, Decoder)
    layer, operations, seen = decoder.layers[-1], FusedOperations(), []
    mixture: Any = layer.mlp
    for seed in range(2):
        x = torch.randn(2, tiny.HIDDEN, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            found = operations.mix(x, layer.mlp_norm, mixture)
            expected = PlainOperations().mix(x, layer.mlp_norm, mixture)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        (scratch,) = operations._routing[mixture.router].values()
        seen.append([scratch.arrived.data_ptr(), *scratch.arrived.tolist()])
    return seen


def dependent_by_rule() -> list[bool]:
    """Whether the products of a step that asks for it begin before the kernel in front of them has ended."""
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.kernels.triton import gemv as module

    launches, original = [], module.gemv
    module.gemv = lambda *given, **how: launches.append(how["launch"]) or original(*given, **how)
    try:
        found, expected = both("llama", torch.float32, 0, FusedOperations(dependent=True))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    finally:
        module.gemv = original
    return [launch.dependent for launch in launches]


def chosen_in_turn() -> list[str]:
    """Two steps of one go choose as the plain operations do, and count alike before the step that follows; by whom."""
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.kernels.triton import next_token as ours

    used: list[str] = []
    kernel, ours.next_token = ours.next_token, lambda *given, **more: used.append("kernel") or kernel(*given, **more)
    try:
        for processors, sampled in (([], False), ([TemperatureLogitsWarper(0.5)], False), ([], True)):
            recipe = recipe_of(processors, sampled=sampled, prompt=3, device=torch.device("cpu"))
            assert isinstance(recipe, Recipe)
            left = []
            for operations in (PlainOperations(), FusedOperations()):
                slots, entered = Slots(2, 2, torch.device("cpu")), False
                slots.begin(torch.tensor([1, 2]), torch.tensor([3, 1]), length=3, made=1)
                for step in range(2):
                    if not entered:
                        slots.enter()
                    torch.manual_seed(step)
                    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(step))
                    entered = operations.choose(recipe, logits, slots, step, enters=step == 0)
                left.append([*slots.kept(), torch.tensor(entered)])
            assert all(map(torch.equal, *left))
            used.append("next")
    finally:
        ours.next_token = kernel
    return used


def wide_heads() -> Any:
    """A model whose heads the kernels of attention read."""
    config: Any = copy.deepcopy(tiny.build("qwen3").config)
    config.head_dim, config.num_hidden_layers, config.layer_types = 64, 1, config.layer_types[:1]
    return tiny.build("qwen3", config=config, dtype=torch.bfloat16)


def turned_within_attention(padded: int, device: str = "cpu") -> list[float]:
    """How far a step's logits lie from the library's, by one launch and by two, of the largest of them; a large room
    takes two."""
    from inference_pio.decoding import fused
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.decoding.operations import PlainOperations
    from inference_pio.kernels.triton import rotated_decode as module

    class BesideTorch(FusedOperations):
        """The interpreter takes seconds for the products of a step, which are not meant here."""

        project, logits = PlainOperations.project, PlainOperations.logits

    kind = FusedOperations if device == "cuda" else BesideTorch
    launched, original, model, far = [], module.rotated_decode, wide_heads().to(device), []
    module.rotated_decode = lambda *given, **how: launched.append(1) or original(*given, **how)
    try:
        for rotated, large in ((True, False), (False, False), (True, True)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fused, "MOST_ROTATED", 0 if large else fused.MOST_ROTATED)
                found, expected = both("qwen3", torch.bfloat16, padded, kind(rotated=rotated), device, model=model)
            far.append(((found - expected).abs().max() / expected.abs().max()).item())
            assert len(launched) == 1, "one launch where it is asked for, none where it is not"
    finally:
        module.rotated_decode = original
    return far


ONE_OF_EACH_KIND = ("glm4_moe", "glm4_moe_lite")
IN_TURN = [pytest.param(name, marks=[] if name in ONE_OF_EACH_KIND else pytest.mark.slow) for name in COMPOSED]
"""The interpreter takes seconds a step; models of like parts are left to `make verify`."""


@in_its_turn(1, of=3)  # of whole models in the interpreter
@needs_triton
@pytest.mark.parametrize("padded", [0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", IN_TURN)
def test_it_is_near_the_library_in_the_interpreter(name: str, padded: int, interpreted: Callable[..., Any]) -> None:
    interpreted(near, name, torch.float32, padded)


@needs_triton
@pytest.mark.parametrize("padded", [0, 3])
def test_attention_rotates_by_itself_in_the_interpreter(padded: int, interpreted: Callable[..., Any]) -> None:
    assert max(interpreted(turned_within_attention, padded)) < 0.04


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [0, 3])
def test_gpu_attention_rotates_by_itself(padded: int) -> None:
    assert max(turned_within_attention(padded, "cuda")) < 0.02


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSED)
def test_it_is_near_the_library_in_16_bits(name: str, interpreted: Callable[..., Any]) -> None:
    interpreted(near, name, torch.bfloat16, 0)


@needs_triton
@pytest.mark.slow
def test_it_is_our_kernels_that_compute(interpreted: Callable[..., Any]) -> None:
    assert interpreted(kernels_used, "llama") == {"gemv"}
    assert interpreted(kernels_used, "glm4_moe") == {"gemv", "route", "expert_gate_up", "expert_down"}


@needs_triton
def test_one_kernel_chooses_where_the_best_token_is_asked_for(interpreted: Callable[..., Any]) -> None:
    assert interpreted(chosen_in_turn) == ["kernel", "kernel", "next", "next", "next"]


@needs_triton
def test_a_router_keeps_its_scratch_from_step_to_step(interpreted: Callable[..., Any]) -> None:
    first, second = interpreted(counters_of_a_router)
    assert first == second
    assert first[1:] == [0, 0]


@needs_triton
@pytest.mark.slow
def test_products_that_are_not_tuned_overlap_where_it_is_asked_for(interpreted: Callable[..., Any]) -> None:
    launches = interpreted(dependent_by_rule)
    assert len(launches) == 3 * 4 + 1  # four of each layer, and the head
    assert all(launches)


@needs_triton
@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=marks_of(place, of=6)) for place, form in enumerate(("int4", "fp8", "int8"))]
)
def test_it_is_near_the_library_over_codes_in_the_interpreter(form: str, interpreted: Callable[..., Any]) -> None:
    interpreted(near_over_codes, "qwen3", form)


@needs_triton
def test_rows_of_a_table_are_looked_up_by_one_kernel(interpreted: Callable[..., Any]) -> None:
    interpreted(looked_up, torch.bfloat16)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("head", ["int8", "fp8"])
def test_it_looks_up_and_multiplies_one_table_in_the_interpreter(head: str, interpreted: Callable[..., Any]) -> None:
    interpreted(near_over_a_table, head, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["int8", "fp8"])
def test_it_looks_up_and_multiplies_one_table_on_a_gpu(head: str, dtype: torch.dtype) -> None:
    near_over_a_table(head, dtype, "cuda")


@needs_triton
def test_over_exponent12_products_have_the_bits_of_plain_ones(interpreted: Callable[..., Any]) -> None:
    assert interpreted(projected_exactly) == 5


def test_over_exponent12_generate_has_the_bits_of_plain_weights() -> None:
    plain, packed = generated(forced("cpu"), 1), generated(forced("cpu"), 1, format="exponent12", least_share=0.3)
    assert plain.isfinite().all()
    assert torch.equal(plain, packed)


@needs_triton
@pytest.mark.parametrize("pivots", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_layers_in_two_factors_are_projected_as_torch_does(pivots: bool, interpreted: Callable[..., Any]) -> None:
    assert interpreted(projected_in_factors, pivots) == [2, 2, 2]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("form", ["pivoted", "plain"])
def test_it_is_near_the_library_in_two_factors_in_the_interpreter(form: str, interpreted: Callable[..., Any]) -> None:
    assert interpreted(near_in_factors, "qwen3", form) == 4 * 2 + 1  # two of each of four products, and the head


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("residual", ["int8", "int4"])
def test_codes_beside_factors_are_left_to_torch_in_the_interpreter(
    residual: str, interpreted: Callable[..., Any]
) -> None:
    assert interpreted(near_in_factors, "qwen3", "plain", "cpu", residual) == 1  # the head


@pytest.mark.gpu
@pytest.mark.parametrize("more", [{}, {"format": "int8"}, {"residual": "int8"}, {"residual": "int4"}])
@pytest.mark.parametrize("form", ["pivoted", "plain"])
def test_it_is_near_the_library_in_two_factors_on_a_gpu(form: str, more: dict[str, str]) -> None:
    near_in_factors("qwen3", form, "cuda", **more)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["int4", "fp8", "int8"])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "glm4_moe"])
def test_it_is_near_the_library_over_codes_on_a_gpu(name: str, form: str) -> None:
    near_over_codes(name, form, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPOSED)
def test_it_is_near_the_library_on_a_gpu(name: str, dtype: torch.dtype, padded: int) -> None:
    near(name, dtype, padded, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 4, 12])
def test_over_exponent12_the_engine_has_the_bits_of_plain_weights_on_a_gpu(rows: int) -> None:
    plain = generated(forced("cuda"), rows)
    packed = generated(forced("cuda"), rows, format="exponent12", least_share=0.3)
    assert plain.isfinite().all()
    assert torch.equal(plain, packed)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 4, 12])
def test_layers_that_are_kept_beside_exponent12_change_no_bit_on_a_gpu(rows: int) -> None:
    kept = ["*.v_proj", "*.up_proj"]
    plain = generated(forced("cuda"), rows)
    assert torch.equal(generated(forced("cuda"), rows, format="exponent12", least_share=0.3, skip=kept), plain)


@pytest.mark.gpu
def test_gpu_steps_that_overlap_choose_as_steps_that_wait() -> None:
    """Products of few programs, which let attention begin at once, and a table of codes: nothing else stands between
    the choice of a token, with its counts, and what reads them."""
    from inference_pio.decoding.fused import FusedOperations

    model: Any = tiny.build("qwen3", dtype=torch.bfloat16).cuda()
    asked = {"tensor_compression": {"format": "int8", "head": "int8"}, "kernel_fusion": {"level": "graph"}}
    get_optimization_manager().apply_optimizations(model, list(asked), parameters=asked)
    engine = engine_of(model)
    assert engine is not None
    prompt = torch.randint(1, 120, (1, 9), generator=torch.Generator().manual_seed(1)).cuda()

    def tokens() -> torch.Tensor:
        out: torch.Tensor = model.generate(prompt, max_new_tokens=200, min_new_tokens=200, pad_token_id=0)
        return out

    overlapping = [tokens() for _ in range(20)]
    engine.close()
    engine.operations = FusedOperations()
    waiting = tokens()
    assert all(torch.equal(one, waiting) for one in overlapping)
    assert not engine.counts.left
