"""What a layer multiplies with is read where its class computes with nothing else."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from inference_pio.decoding.weights import expert_weights, factored_weights, linear_weights, unpacked_beside_plain
from inference_pio.formats.coded_residual import CodedResidual
from inference_pio.formats.exponent12 import Exponent12Linear
from inference_pio.formats.factored_linear import FactoredLinear, IntoFew
from inference_pio.formats.fp8 import Fp8Experts, Fp8Linear
from inference_pio.formats.int4 import Int4Experts, Int4Linear
from inference_pio.formats.int8 import Int8Experts, Int8Linear
from tests import tiny
from tests.decoding.conftest import in_words


def test_plain_and_compressed_linears_are_read() -> None:
    plain = nn.Linear(32, 3)
    found = linear_weights(plain)
    assert found is not None
    assert (found.weight, found.scale, found.bias) == (plain.weight, None, plain.bias)
    coded = Int8Linear.from_linear(plain)
    found = linear_weights(coded)
    assert found is not None
    assert found.weight is coded.weight_int8
    assert found.scale is coded.weight_scale
    assert found.bias is plain.bias
    coded = Fp8Linear.from_linear(plain)
    found = linear_weights(coded)
    assert found is not None
    assert (found.weight, found.scale, found.bias) == (coded.weight_fp8, coded.weight_scale, plain.bias)
    assert found.kind == (torch.uint8, 0)
    packed = Int4Linear.from_linear(plain, 32)
    assert linear_weights(packed) is None  # as files hold it
    found = linear_weights(in_words(packed))
    assert found is not None
    assert (found.weight, found.scale, found.bias) == (packed.weight_int4, packed.weight_scale, plain.bias)
    assert found.kind[1] == 32


def test_packed_linears_are_made_anew_beside_those_that_were_kept_alone() -> None:
    plain = [nn.Linear(32, rows, dtype=torch.bfloat16) for rows in (3, 5)]
    packed = Exponent12Linear.from_linear(plain[0])
    found = unpacked_beside_plain([packed, plain[1]])
    assert found is not None
    assert torch.equal(found[0].weight, plain[0].weight)
    assert (found[0].bias, found[1].weight) == (plain[0].bias, plain[1].weight)
    for others in (plain, [packed, Int8Linear.from_linear(plain[1])], [packed, nn.Linear(32, 5)]):
        assert unpacked_beside_plain(others) is None


def test_linears_that_compute_otherwise_are_called() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    assert linear_weights(Scaled(2, 2)) is None
    assert linear_weights(nn.Identity()) is None
    assert linear_weights(parametrizations.weight_norm(nn.Linear(2, 2))) is None


def test_experts_are_read_in_the_known_layout_alone() -> None:
    model: Any = tiny.build("qwen3_moe")
    experts = model.model.layers[1].mlp.experts
    found = expert_weights(experts)
    assert found is not None
    assert (found.gate_up, found.down, found.gate_up_scale) == (experts.gate_up_proj, experts.down_proj, None)
    coded = Int8Experts.from_experts(experts)
    found = expert_weights(coded)
    assert found is not None
    assert found.gate_up is coded.gate_up_int8
    assert found.down_scale is coded.down_scale
    coded = Fp8Experts.from_experts(experts)
    found = expert_weights(coded)
    assert found is not None
    assert (found.gate_up, found.down) == (coded.gate_up_fp8, coded.down_fp8)
    config = copy.deepcopy(model.config)
    config.moe_intermediate_size = 64
    wide: Any = tiny.build("qwen3_moe", config=config)
    packed = Int4Experts.from_experts(wide.model.layers[1].mlp.experts, 32)
    assert expert_weights(packed) is None
    found = expert_weights(in_words(packed))
    assert found is not None
    assert (found.gate_up, found.down_scale) == (packed.gate_up_int4, packed.down_scale)
    experts.is_transposed = True
    assert expert_weights(experts) is None


def test_factors_are_read_where_layers_share_the_first() -> None:
    order = torch.arange(32, dtype=torch.int32)
    into, other = (IntoFew(nn.Linear(24, 8, bias=False), order, readers=2) for _ in range(2))
    first, second, third = (FactoredLinear(one, nn.Linear(8, 5)) for one in (into, into, other))
    found = factored_weights([first, second])
    assert found is not None
    assert (found.into.weight, found.rank, found.order) == (into.rest.weight, 8, order)
    assert [one.weight for one in found.out_of] == [first.out_of.weight, second.out_of.weight]
    assert [one.bias for one in found.out_of] == [first.out_of.bias, second.out_of.bias]
    assert factored_weights([first, third]) is None
    assert factored_weights([first, nn.Linear(32, 5)]) is None
    second.out_of = Int8Linear.from_linear(second.out_of)
    assert factored_weights([first, second]) is None
    first.out_of = Int8Linear.from_linear(first.out_of)
    coded = factored_weights([first, second])
    assert coded is not None
    assert coded.out_of[0].kind == (torch.int8, 0)


def test_codes_beside_factors_are_read_neither_as_codes_nor_as_factors() -> None:
    factors = FactoredLinear(IntoFew(nn.Linear(32, 8, bias=False)), nn.Linear(8, 5))
    both = CodedResidual(Int8Linear.from_linear(nn.Linear(32, 5, bias=False)), factors)
    assert linear_weights(both) is None
    assert factored_weights([both]) is None
    assert factored_weights([factors, both]) is None
