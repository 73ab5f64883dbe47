"""bfloat16 in 12 bits: every bit pattern comes back, and products are those of the weights."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.exponent12 import (
    Packed,
    exponent12_linear,
    listed_share,
    naive_weights,
    pack,
    unpack,
    unpack_one,
)

SHAPES = [(1, 16), (3, 16), (16, 32), (17, 48), (33, 96), (48, 160), (2, 17, 48), (5, 3, 16), (3, 48, 64)]


def every_pattern(columns: int, seed: int) -> torch.Tensor:
    """All 65536 bit patterns of bfloat16, in an order drawn by chance."""
    order = torch.randperm(65536, generator=torch.Generator().manual_seed(seed))
    return order.to(torch.int16).view(torch.bfloat16).view(-1, columns)


def trained(*shape: int, seed: int = 0) -> torch.Tensor:
    """Weights as trained ones are: rows of several sizes, a few weights far smaller than their row."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(*shape, generator=generator) * 0.02
    weights *= torch.exp2(torch.randint(-9, 3, (*shape[:-1], 1), generator=generator))
    tiny = torch.rand(shape, generator=generator) < 0.01
    return torch.where(tiny, weights * 2.0**-18, weights).bfloat16()


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype is other.dtype is torch.bfloat16 and torch.equal(one.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize("columns", [16, 256, 4096])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_bit_pattern_comes_back_whatever_stands_beside_it(columns: int, seed: int) -> None:
    weights = every_pattern(columns, seed)
    packed = pack(weights)
    assert same_bits(unpack(packed), weights)
    assert packed.places.numel() > 1000  # most rows hold an infinity, and most weights are listed
    assert same_bits(unpack(pack(weights.view(4, -1, columns))), weights.view(4, -1, columns))


def test_zeros_subnormals_infinities_and_payloads_of_nan_come_back() -> None:
    bits = [0, -32768, 1, -32767, 0x7F, 0x80, 0x7F80, -0x80, 0x7F81, 0x7FC1, -1, 0x7FFF, 0x3F80, 0x0780, 0x0700, 0x4000]
    alone = torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)
    for row in (alone, *(one.expand(16) for one in alone)):
        weights = row[None].contiguous()
        assert same_bits(unpack(pack(weights)), weights)
        assert same_bits(naive_weights(pack(weights)), weights)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpacking_is_the_plain_definition_on_awkward_shapes(shape: tuple[int, ...]) -> None:
    weights = trained(*shape)
    packed = pack(weights)
    assert same_bits(unpack(packed), weights)
    for number, matrix in enumerate(weights if len(shape) == 3 else weights[None]):
        assert same_bits(naive_weights(pack(matrix)), matrix)
        if len(shape) == 3:
            assert same_bits(unpack_one(packed, number), matrix)
    assert torch.equal(unpack(packed, torch.float32), weights.float())


def test_blocks_and_runs_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, whole = trained(3, 53, 32), pack(trained(3, 53, 32))
    monkeypatch.setattr("inference_pio.kernels.exponent12.BLOCK_ELEMENTS", 20 * 32)
    for one, other in zip(pack(weights), whole, strict=True):
        assert torch.equal(one, other)
        assert one.dtype is other.dtype
    assert same_bits(unpack(whole), weights)


def test_each_run_of_rows_finds_its_listed_weights_in_order() -> None:
    weights = trained(2, 53, 96)
    packed = pack(weights)
    assert packed.starts.shape == (2, 5)
    assert packed.starts[0, -1] == packed.starts[1, 0]
    assert packed.starts[1, -1] == len(packed.places) == len(packed.values) > 0
    for matrix in range(2):
        for run in range(4):
            places = packed.places[packed.starts[matrix, run] : packed.starts[matrix, run + 1]]
            rows = places // 96
            assert torch.equal(places, places.sort().values)
            assert ((rows >= 16 * run) & (rows < 16 * run + 16)).all()
            told = int(packed.listed_rows[matrix, run])
            assert {16 * run + bit for bit in range(16) if told >> bit & 1} == set(rows.tolist())


def test_it_takes_twelve_bits_a_weight_and_little_beside() -> None:
    weights = torch.randn(512, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed = pack(weights)
    assert 12 < sum(part.nbytes for part in packed) * 8 / weights.numel() < 12.02
    assert listed_share(weights) == len(packed.places) / weights.numel() < 2e-4
    assert listed_share(weights[None]) == listed_share(weights)


def test_a_row_is_measured_by_its_own_largest_weight() -> None:
    weights = torch.ones(2, 16).bfloat16()
    weights[1] *= 2.0**-60
    weights[0, 5], weights[0, 6], weights[0, 7] = 2.0**-14, 2.0**-15, 0.0
    packed = pack(weights)
    assert packed.lowest.tolist() == [113, 53]
    assert packed.places.tolist() == [6, 7]
    assert packed.values.tolist() == [2.0**-15, 0.0]


def test_on_the_meta_device_it_has_shapes_and_lists_nothing() -> None:
    here, there = pack(trained(3, 17, 32)), pack(torch.empty(3, 17, 32, dtype=torch.bfloat16, device="meta"))
    assert all(part.is_meta for part in there)
    assert [part.dtype for part in there] == [part.dtype for part in here]
    assert [part.shape for part in there[:4]] == [part.shape for part in here[:4]]
    assert there.places.shape == there.values.shape == (0,)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_linear_product_has_the_bits_of_torch_and_its_gradients(rows: int) -> None:
    weights, bias = trained(48, 64), torch.randn(48).bfloat16()
    x = torch.randn(2, rows, 64).bfloat16()
    packed = pack(weights)
    assert torch.equal(exponent12_linear(x, packed, bias), torch.nn.functional.linear(x, weights, bias))
    gradients = []
    for product in (lambda *given: exponent12_linear(given[0], packed, given[1]),
                    lambda *given: torch.nn.functional.linear(given[0], weights, given[1])):  # fmt: skip
        given = x.clone().requires_grad_(), bias.clone().requires_grad_()
        product(*given).float().square().sum().backward()
        gradients.append([one.grad for one in given])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_four_bytes_of_indices_are_read_as_one_number_beside_eight_codes() -> None:
    """Both halves of a pair of bfloat16 come about by shifts of the same words: what kernels do."""
    weights = trained(4, 32)
    packed = pack(weights)
    codes, indices = packed.codes.view(torch.int32).view(4, 4, 2), packed.indices.view(torch.int32)
    base = ((packed.lowest.int() - 1) * 0x00800080)[:, None]  # exponents begin with it, in both halves
    words = [(codes[..., 0], 7, True), (codes[..., 0], 3, False), (codes[..., 1], -1, True), (codes[..., 1], -5, False)]
    for number, (word, shift, first) in enumerate(words):
        moved = indices << shift if shift > 0 else indices >> -shift
        sign, mantissa = (word << 8, word) if first else (word, word >> 8)
        pair = ((sign & -0x7FFF8000) | (mantissa & 0x7F007F) | (moved & 0x7800780)) + base
        halves = pair.view(4, 4, 1).view(torch.int16).view(torch.bfloat16)
        column = number // 2 * 4 + number % 2
        wanted = weights.view(4, 4, 8)[..., [column, column + 2]]
        listed = (unpack(packed._replace(values=torch.full_like(packed.values, torch.inf))) == torch.inf).view(4, 4, 8)
        assert ((halves == wanted) | listed[..., [column, column + 2]]).all()


def test_parts_are_named_and_in_order() -> None:
    assert Packed._fields == ("codes", "indices", "lowest", "listed_rows", "starts", "places", "values")
