"""What attentions do for a token by itself: the linear map from what each is given of it that comes closest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from inference_pio.calibration.forward import forward
from inference_pio.calibration.removal import first_result, stream_in
from inference_pio.calibration.source import CalibrationSource
from inference_pio.kernels.linear_fit import LinearFit

TokenFit = tuple[Tensor, Tensor]
"""A weight [width, width] and a bias [width], in float64."""


def token_fits(model: nn.Module, source: CalibrationSource, attentions: Iterable[str]) -> dict[str, TokenFit]:
    """By path, from all tokens of the source; the model is only run."""
    fits: dict[str, LinearFit] = {path: LinearFit() for path in attentions}
    handles = [
        model.get_submodule(path).register_forward_hook(_adds_to(fit), with_kwargs=True) for path, fit in fits.items()
    ]
    try:
        for batch in source.batches if fits else ():
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {path: fit.solve() for path, fit in fits.items()}


def _adds_to(fit: LinearFit) -> Any:
    def note(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given, out = stream_in(args, kwargs), first_result(result)
        fit.add(given.detach().flatten(0, -2), out.detach().flatten(0, -2))

    return note
