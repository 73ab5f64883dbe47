"""Linear layers of a decoder that multiply a few rows by our kernel, alone or side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from inference_pio.anatomy.call_guards import library_forward, serves, why_not_replaced
from inference_pio.anatomy.decoder import decoder_of
from inference_pio.anatomy.latent_attention import OUT_OF_LATENT, is_latent_attention
from inference_pio.kernels.few_rows import linear


def decoder_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a model's text decoder, and its head, by path; none where its parts are not known.

    The layer that expands a latent cache is none of them: the library multiplies it with every cached token, and others
    read its weight from beside it.

    >>> list(decoder_linears(nn.Sequential(nn.Linear(2, 2))))
    []
    """
    decoder = decoder_of(model)
    if isinstance(decoder, str):
        return
    mine = {id(module) for module in decoder.modules()}
    mine -= {id(module.get_submodule(OUT_OF_LATENT)) for module in decoder.modules() if is_latent_attention(module)}
    for path, module in model.named_modules():
        if id(module) in mine and isinstance(module, nn.Linear):
            yield path, module


def why_no_few_rows(layer: nn.Module) -> str | None:
    """Why a linear layer must be called as it is, or None."""
    if type(layer) is not nn.Linear:
        return f"it is a {type(layer).__name__}, and no plain Linear"
    return why_not_replaced(layer)


def few_rows_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The forward of a linear layer that takes a few rows to our kernel."""
    if named or len(given) != 1 or not serves(self, given[0]):
        return library_forward(self, *given, **named)
    weight: Tensor = self._parameters["weight"]  # type: ignore[assignment]
    return linear(given[0], weight, self._parameters["bias"])
