"""Linear layers take a few rows to our kernel in plain inference, and are the library's own in everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from inference_pio.anatomy import few_row_linears as room
from inference_pio.anatomy.call_guards import put_forward
from inference_pio.anatomy.few_row_linears import decoder_linears, few_rows_forward, why_no_few_rows
from inference_pio.compat import has_triton
from inference_pio.formats.int8 import Int8Linear
from inference_pio.kernels import few_rows
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.kernels.triton.conftest import interpreted
from tests.sweep import in_its_turn

__all__ = ["interpreted"]
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def layer_of(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.ModuleList([nn.Linear(6, 5, bias=bias)]).eval().requires_grad_(False)
    journal = Journal(layer)
    with journal.step("few rows"):
        put_forward(journal, layer[0], few_rows_forward)
    return layer[0]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that came to the product for a few rows."""
    seen: list[torch.Size] = []
    product = room.linear

    def counted(x: torch.Tensor, *given: Any) -> torch.Tensor:
        seen.append(x.shape)
        return product(x, *given)

    monkeypatch.setattr(room, "linear", counted)
    return seen


@pytest.mark.parametrize("bias", [False, True])
def test_plain_inference_goes_to_the_product_for_a_few_rows(bias: bool, products: list[torch.Size]) -> None:
    layer, x = layer_of(bias), torch.randn(1, 2, 6)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))  # type: ignore[arg-type]
    assert products == [x.shape]
    assert torch.equal(layer(input=x), layer(x))  # by name the class's own forward answers
    assert len(products) == 2


def test_training_gradients_and_tracing_take_the_classes_own(products: list[torch.Size]) -> None:
    layer, x = layer_of(), torch.randn(1, 6)
    layer(x.clone().requires_grad_()).sum().backward()
    layer.train()(x)
    layer.eval()
    torch.compile(lambda x: layer(x) + 1, backend="eager", fullgraph=True)(x)
    layer.requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert products == []
    with torch.no_grad():
        layer(x)
    assert len(products) == 1


def test_hooks_see_its_calls_and_a_copy_computes_with_its_own_weights(products: list[torch.Size]) -> None:
    layer, x, seen = layer_of(), torch.randn(1, 6), list[torch.Size]()
    layer.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    layer(x)
    assert (len(seen), len(products)) == (1, 1)
    twin = copy.deepcopy(layer)
    twin.weight.data.zero_()  # type: ignore[operator]
    twin.bias.data.zero_()  # type: ignore[operator]
    assert twin(x).abs().sum() == 0
    assert layer(x).abs().sum() > 0


def test_what_stays_as_it_is_is_told() -> None:
    assert why_no_few_rows(nn.Linear(2, 2)) is None
    assert "Int8Linear" in str(why_no_few_rows(Int8Linear.from_linear(nn.Linear(2, 2))))
    parametrized = nn.Linear(2, 2)
    parametrize.register_parametrization(parametrized, "weight", nn.Identity())
    assert "ParametrizedLinear" in str(why_no_few_rows(parametrized))
    own = nn.Linear(2, 2)
    own.forward = own.forward  # type: ignore[method-assign]
    assert why_no_few_rows(own) == "its forward is overridden by somebody else"


@pytest.mark.parametrize("name", ["llama", "qwen3_vl", "glm4_moe_lite"])
def test_the_decoders_layers_and_the_head_are_found(name: str) -> None:
    found = dict(decoder_linears(tiny.build(name)))
    assert "lm_head" in found
    assert not [path for path in found if "visual" in path or "experts.gate_up" in path]
    assert [path for path in found if path.endswith("o_proj")]
    assert dict(decoder_linears(tiny.build("gpt2"))) == {}


def decoded(name: str) -> tuple[dict[str, int], list[str], float]:
    """How often our kernel multiplies in a model's forward of two rows, the receipt's notes, and how far off it is."""
    with pytest.MonkeyPatch.context() as patch:
        return _decoded(name, patch)


def _decoded(name: str, patch: pytest.MonkeyPatch) -> tuple[dict[str, int], list[str], float]:
    from inference_pio.kernels.triton import gemv as module

    multiplied, original = list[int](), module.gemv
    patch.setattr(module, "gemv", lambda *given, **how: multiplied.append(1) or original(*given, **how))
    served = few_rows.serves_few_rows
    patch.setattr(few_rows, "choose_few_rows_backend", lambda *given: "triton" if served(*given) else "torch")
    model, tokens, manager = tiny.build(name), torch.tensor([[3], [5]]), ModularOptimizationManager()
    with torch.no_grad():
        before = model(tokens).logits
        manager.apply_optimizations(model, ["kernel_fusion"], parameters={"kernel_fusion": {"level": "gemv"}})
        after, few = model(tokens).logits, len(multiplied)
        model(tokens.expand(2, 5))
        counts = {"two rows": few, "ten rows": len(multiplied) - few}
        notes = [note for receipt in manager.get_receipts(model) for note in receipt.notes]
        manager.remove_optimizations(model)
        counts["undone"] = int(torch.equal(model(tokens).logits, before))
    return counts, notes, ((after - before).abs().max() / before.abs().max()).item()


@in_its_turn(2, of=3)  # of whole models in the interpreter
@needs_triton
@pytest.mark.parametrize(
    ("name", "products", "alone"),
    [pytest.param("llama", 3 * 4 + 1, 7, marks=pytest.mark.slow), ("glm4_moe_lite", None, None)],
)
def test_a_model_decodes_by_our_kernel_in_the_interpreter(
    name: str, products: int | None, alone: int | None, interpreted: Callable[..., Any]
) -> None:
    calls, notes, off = interpreted(decoded, name)
    assert off < 1e-4
    assert calls["ten rows"] == 0
    assert calls["undone"]
    (said,) = [note for note in notes if "rows are multiplied" in note]
    assert said.startswith("up to 8 rows are multiplied by our kernel: ")
    if products is not None:
        assert calls["two rows"] == products
        assert said.endswith(f"6 merged products, {alone} layers")
    else:
        assert calls["two rows"] > 10


def test_the_layer_that_expands_a_latent_cache_is_left_alone() -> None:
    model = tiny.build("glm4_moe_lite")
    expanding = {path for path, _ in model.named_modules() if path.endswith("kv_b_proj")}
    assert expanding
    assert not expanding & set(dict(decoder_linears(model)))
