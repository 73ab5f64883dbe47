"""An embedding and a head that keep some tokens alone; ids are still those of the whole vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.compat import assert_on_device
from inference_pio.errors import RefusedOnOptimized

GONE = -1


class TrimmedEmbedding(nn.Embedding):
    """`places` [vocabulary] tells in which row of the weight a token lies, or that it is gone."""

    places: Tensor

    def __init__(self, whole: nn.Embedding, weight: nn.Parameter, kept: Tensor) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = whole.num_embeddings, whole.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = None, None, whole.norm_type
        self.scale_grad_by_freq, self.sparse = False, False
        self.weight = weight
        places = torch.full((whole.num_embeddings,), GONE, dtype=torch.int64, device=weight.device)
        places[kept.to(weight.device)] = torch.arange(len(kept), device=weight.device)
        self.register_buffer("places", places)

    def forward(self, input: Tensor) -> Tensor:
        places = self.places.index_select(0, input.flatten()).view(input.shape)  # an index would count -1 from the end
        if places.device.type == "cpu":
            if places.numel() and int(places.min()) == GONE:
                raise RefusedOnOptimized(_left_out(int(input[places == GONE][0])))
        else:
            assert_on_device((places >= 0).all(), _left_out(None))
        return F.embedding(places, self.weight)


class TrimmedHead(nn.Linear):
    """Logits of the whole vocabulary, minus infinity for tokens that are gone; `kept` are the ids of the rows."""

    kept: Tensor

    def __init__(self, whole: nn.Linear, weight: nn.Parameter, bias: nn.Parameter | None, kept: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = whole.in_features, whole.out_features
        self.weight = weight
        self.register_parameter("bias", bias)
        self.register_buffer("kept", kept.to(weight.device))

    def forward(self, input: Tensor) -> Tensor:
        among = F.linear(input, self.weight, self.bias)
        logits = among.new_full((*among.shape[:-1], self.out_features), float("-inf"))
        return logits.index_copy(-1, self.kept, among)


def _left_out(token: int | None) -> str:
    which = "a token of this text" if token is None else f"token {token}"
    return (
        f"{which} was left out of the vocabulary by model_surgery: keep it (keep_ids=[...], or text that holds it), or "
        "take that back (remove_optimizations(model, ['model_surgery']))."
    )
