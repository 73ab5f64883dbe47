"""A tiny Llama in a `.gguf` file, written as llama.cpp's converter writes it, with the floats it must come back as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def write_tiny_gguf(
    path: Path, *, seed: int = 0, tokenizer: bool = True, leave_out: str = ""
) -> dict[str, torch.Tensor]:
    """Write the file; returns the state dict that a converted model must have, bit for bit.

    Matrices are Q4_1, the embedding is Q8_0, norms are F32; the head is tied. `leave_out` names a tensor to omit.
    """
    tokens = _tokens()
    writer = GGUFWriter(path, "llama")
    _write_sizes(writer, len(tokens))
    if tokenizer:
        _write_tokenizer(writer, tokens)
    expected = {}
    for gguf_name, hf_name, shape, kind, heads in _tensors(len(tokens)):
        if gguf_name == leave_out:
            continue
        raw = np.random.default_rng([seed, len(expected)]).normal(size=shape).astype(np.float32) * 0.2
        packed = raw if kind is GGMLQuantizationType.F32 else quantize(raw, kind)
        writer.add_tensor(gguf_name, packed, raw_dtype=kind)
        unpacked = raw if kind is GGMLQuantizationType.F32 else dequantize(packed, kind)
        expected[hf_name] = torch.from_numpy(_in_library_order(unpacked, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _in_library_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp lays a head's rotary pairs side by side; the library keeps all first halves, then all second ones."""
    if not heads:
        return rows
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(rows.shape)


def _tokens() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    return [*SPECIAL_TOKENS, *signs, "th", "the"]


def _write_sizes(writer: GGUFWriter, vocabulary: int) -> None:
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)


def _write_tokenizer(writer: GGUFWriter, tokens: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = [TokenType.CONTROL if token in SPECIAL_TOKENS else TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(vocabulary: int) -> list[tuple[str, str, tuple[int, ...], GGMLQuantizationType, int]]:
    """Name in the file, name in the library, shape, storage type, heads whose rows are in another order."""
    q4, f32 = GGMLQuantizationType.Q4_1, GGMLQuantizationType.F32
    kv_width = HIDDEN // HEADS * KV_HEADS
    rows = [("token_embd", "model.embed_tokens", (vocabulary, HIDDEN), GGMLQuantizationType.Q8_0, 0)]
    for index in range(LAYERS):
        there, here = f"blk.{index}.", f"model.layers.{index}."
        rows += [
            (f"{there}attn_norm", f"{here}input_layernorm", (HIDDEN,), f32, 0),
            (f"{there}attn_q", f"{here}self_attn.q_proj", (HIDDEN, HIDDEN), q4, HEADS),
            (f"{there}attn_k", f"{here}self_attn.k_proj", (kv_width, HIDDEN), q4, KV_HEADS),
            (f"{there}attn_v", f"{here}self_attn.v_proj", (kv_width, HIDDEN), q4, 0),
            (f"{there}attn_output", f"{here}self_attn.o_proj", (HIDDEN, HIDDEN), q4, 0),
            (f"{there}ffn_norm", f"{here}post_attention_layernorm", (HIDDEN,), f32, 0),
            (f"{there}ffn_gate", f"{here}mlp.gate_proj", (INNER, HIDDEN), q4, 0),
            (f"{there}ffn_up", f"{here}mlp.up_proj", (INNER, HIDDEN), q4, 0),
            (f"{there}ffn_down", f"{here}mlp.down_proj", (HIDDEN, INNER), q4, 0),
        ]
    rows.append(("output_norm", "model.norm", (HIDDEN,), f32, 0))
    return [(f"{there}.weight", f"{here}.weight", shape, kind, heads) for there, here, shape, kind, heads in rows]
