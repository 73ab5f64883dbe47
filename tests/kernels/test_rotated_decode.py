"""The plain truth of a decode token: it is rotation and storing, then attention over what is held."""

from __future__ import annotations

import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.rotated_decode import naive_rotated_decode
from tests.kernels.test_rotary_store import inputs


def test_a_first_token_attends_to_itself_alone() -> None:
    tensors, how = inputs(rows=1, lengths=(1,))
    out = naive_rotated_decode(*tensors, **how)
    value = tensors[0].view(1, 5, 16)[:, 4:]
    torch.testing.assert_close(out, value.expand(1, 3, 16))


def test_it_attends_to_what_it_has_just_stored() -> None:
    tensors, how = inputs(rows=1, lengths=(7,))
    tensors[3], tensors[4] = torch.ones(40, 16), torch.zeros(40, 16)  # nothing turns
    out = naive_rotated_decode(*tensors, **how)
    qkv, keys, values = tensors[0].view(1, 5, 16), tensors[1][:, :7], tensors[2][:, :7]
    torch.testing.assert_close(keys[:, 6], qkv[:, 3:4])
    wanted = naive_attention(qkv[:, :3, None], keys.transpose(1, 2), values.transpose(1, 2))
    torch.testing.assert_close(out, wanted[:, :, 0])
