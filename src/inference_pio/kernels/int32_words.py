"""Signed codes packed into int32 words along their last dimension, lowest bits first; the plain truth first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORD_BITS = 32


def naive_pack_words(codes: list[int], bits: int) -> list[int]:
    """Words of one row of signed codes, each raised by half its range; what is left of the last word is 0.

    >>> [hex(word) for word in naive_pack_words([-8, -7, 7], 4)]
    ['0xf10']
    """
    words = [0] * -(-len(codes) * bits // WORD_BITS)
    for place, code in enumerate(codes):
        words[place * bits // WORD_BITS] |= code + (1 << bits - 1) << place * bits % WORD_BITS
    return [word - (1 << WORD_BITS) if word >> WORD_BITS - 1 else word for word in words]


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Codes int8 [..., K] of 4 or 8 bits as int32 [..., words]; K need not fill the last word."""
    raised = codes.view(torch.uint8) + (1 << bits - 1)  # wraps around: -1 is 255, and 255 + 8 is 7
    raised = F.pad(raised, (0, -codes.shape[-1] % (WORD_BITS // bits)))
    if bits == 4:
        low, high = raised.unflatten(-1, (-1, 2)).unbind(-1)
        raised = low | high << 4
    return raised.contiguous().view(torch.int32)
