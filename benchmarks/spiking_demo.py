"""What the demo model loses as a spiking network, and what it says: `python benchmarks/spiking_demo.py`.

The quantized twin answers in its place: its numbers are the spikes' to the bit, and come sooner.
"""

from __future__ import annotations

import argparse

import torch

from inference_pio.manager import get_optimization_manager
from inference_pio.measure import Reference, compare
from inference_pio.measure.text import evaluation_tokens
from inference_pio.sources import open_model
from inference_pio.spiking.twin import QuantizedTwin

PROMPT = "The capital of France is"


class ByCounts(torch.nn.Module):
    """A spiking model's twin, as what is measured."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: torch.Tensor, **given: object) -> object:
        return QuantizedTwin(self.model)(input_ids=input_ids, **given)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.get_input_embeddings()  # type: ignore[operator, no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", type=int, default=127)
    parser.add_argument("--tokens", type=int, default=1536)
    asked = parser.parse_args()
    opened = open_model("demo", dtype=torch.float32)
    model, tokenizer = opened.model.eval(), opened.tokenizer
    held_out = evaluation_tokens(tokenizer, tokens=asked.tokens)
    with Reference.record(model, held_out) as reference:
        manager, given = get_optimization_manager(), {"snn_conversion": {"levels": asked.levels}}
        manager.apply_optimizations(model, ["snn_conversion"], parameters=given)
        found = compare(reference, ByCounts(model).eval())
    print(f"{asked.levels} levels, {asked.tokens} tokens: perplexity ratio {found.perplexity_ratio:.4f}, "
          f"KL {found.kl_nats_per_token:.4f}, top-1 {found.top1_agreement:.4f}")  # fmt: skip
    ids = tokenizer(PROMPT, return_tensors="pt")
    said = QuantizedTwin(model).generate(**ids, max_new_tokens=32, do_sample=False)
    print(tokenizer.decode(said[0]))


if __name__ == "__main__":
    main()
