"""A decode step by hand: the library's static cache, the step compiled or not, captured as one CUDA graph.

No peer serves this in one call; it is what a skilled user can build from torch and transformers alone.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arms.decoder import Decoded, Decoder

WARM_UP_STEPS = 3


class GraphDecoder(Decoder):
    """Batch 1. `compile_options` are given to `torch.compile`; None leaves the step to eager kernels.

    On a machine without CUDA the same step runs without a graph, which proves its arithmetic and nothing of its speed.
    """

    def __init__(self, model: nn.Module, room_tokens: int, compile_options: dict[str, Any] | None = None) -> None:
        from transformers import StaticCache

        self.model, self.room = model, room_tokens
        self.device = next(model.parameters()).device
        self.cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=room_tokens)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.position = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.places = torch.arange(room_tokens, device=self.device)[None, None, None]
        self.function = self._forward
        if compile_options is not None:
            self.function = torch.compile(self._forward, **compile_options)
        self.graph: Any = None
        self.logits: Tensor | None = None

    def _forward(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits [1, vocabulary] of one token; the cache knows by itself where it stands."""
        seen = self.places <= position[:, None, None]
        return self.model(
            input_ids=token, position_ids=position, attention_mask=seen, past_key_values=self.cache, use_cache=True
        ).logits[:, -1]

    def _step(self) -> None:
        logits = self.function(self.token, self.position)
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.position.add_(1)

    @torch.no_grad()
    def capture(self, prompt: Tensor) -> None:
        """Compile, warm up and capture, behind `prompt`; each decode starts with its own prefill again."""
        self._prefill(prompt)
        if self.device.type != "cuda":
            self._step()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()

    @torch.no_grad()
    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        if prompt.shape[1] + new_tokens > self.room:
            raise ValueError(f"{prompt.shape[1]} + {new_tokens} tokens do not fit a cache of {self.room}")
        advance = self.graph.replay if self.graph is not None else self._step
        tokens = torch.zeros(new_tokens, dtype=torch.long, device=self.device)
        self._wait()
        start = time.perf_counter()
        rows = [self._prefill(prompt)]
        tokens[0] = self.token[0, 0]
        self._wait()
        first = time.perf_counter()
        for number in range(1, new_tokens):
            if forced is not None:
                self.token.fill_(int(forced[number - 1]))
            advance()
            tokens[number : number + 1].copy_(self.token[0])
            if logits:
                rows.append(self.logits.float().cpu())  # type: ignore[union-attr]
        self._wait()
        last = time.perf_counter()
        return Decoded(tokens.cpu(), first - start, last - first, torch.cat(rows) if logits else None)

    def _prefill(self, prompt: Tensor) -> Tensor:
        """Fill the cache from its start with `prompt`, eagerly; the step then stands behind it. Its logits [1, V]."""
        for layer in self.cache.layers:
            layer.cumulative_length.zero_()
        logits = self.model(input_ids=prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[
            :, -1
        ]
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.position.fill_(prompt.shape[1])
        return logits.float().cpu()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
