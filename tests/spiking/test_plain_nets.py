"""Which plain nets spike, and what stays on the host."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.spiking.plain_nets import host_operations, why_no_spiking_net
from tests import tiny


@pytest.mark.parametrize("act", [nn.GELU, nn.Tanh, nn.SiLU, nn.Softmax])
def test_activations_other_than_relu_are_named(act: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(act()))
    assert why_no_spiking_net(net) == f"neurons that integrate and fire compute ReLU, and 2.0 is a {act.__name__}"


def test_language_models_keep_theirs_on_the_host() -> None:
    model = tiny.build("llama")
    assert why_no_spiking_net(model) is None
    assert host_operations(model, nn.Linear) == ["Embedding", "LlamaRMSNorm", "LlamaRotaryEmbedding", "SiLUActivation"]
