"""The few names that structure cannot tell, as data. A name counts only where structure has found the place for it."""

from __future__ import annotations

ATTENTION_QKV = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "qkv", "query_key_value", "W_pack", "Wqkv", "c_attn", "q_attn"}
    | {"query", "key", "value"}
    | {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}  # multi-head latent attention
)
"""Linear layers of an attention module that make queries, keys and values."""

ATTENTION_OUT = frozenset({"o_proj", "out_proj", "c_proj", "dense", "proj", "wo", "out"})
"""The linear layer of an attention module that leads back to the residual stream."""

ROUTERS = frozenset({"shared_expert_gate"})
"""Routers that do not choose among the fused experts beside them: they weigh a single shared one."""

NORM_CLASS = "norm"
"""What the class of a norm has in its name, in lower case; its weights are vectors, but so are others'."""

VISION_CONFIGS = frozenset({"vision_config", "visual_config"})
"""Where a model's configuration keeps that of its vision tower."""

OTHER_TOWER_CONFIGS = frozenset({"audio_config", "speech_config", "decoder_config", "code_predictor_config"})
"""Where it keeps those of towers that are neither text nor vision: what is inside them is not told."""

ATTENTION_TABLE = "ALL_ATTENTION_FUNCTIONS"
"""The table that a module asks for its attention function when it goes through the library's attention interface."""

WRAPPED_BY_ADAPTER = "base_layer"
"""The child of an adapter layer that is the layer it adapts."""

ADAPTED_PARAMETER = "parameter_name"
"""What an adapter layer has that adapts a tensor of the layer inside, and so reads that tensor itself."""
