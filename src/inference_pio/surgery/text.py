"""What edits learn from: one text for all of them, made when the first one asks."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn

from inference_pio.calibration.held_out import ONE_IN, HeldOut, parted
from inference_pio.calibration.source import CalibrationSource, calibration_source, token_windows
from inference_pio.calibration.stray_tokens import with_stray_tokens
from inference_pio.measure.target import max_positions
from inference_pio.surgery.parameters import SurgeryParameters

WINDOW, LEAST_WINDOW = 1024, 32
"""Tokens of a window: fewer where the text is short, since one window in eight is held out."""


class SurgeryText:
    """`source` is all of it; `learned` the part to choose by, `held_out` the judge, with the original's answers."""

    def __init__(self, model: nn.Module, asked: SurgeryParameters) -> None:
        self._model, self._asked = model, asked
        self.refitted: dict[str, Tensor] = {}
        """Weights of what lies behind all that goes, by their paths, as the last edit to learn left them."""

    @cached_property
    def source(self) -> CalibrationSource:
        asked = self._asked
        window = min(WINDOW, max_positions(self._model) or WINDOW, max(LEAST_WINDOW, asked.tokens // ONE_IN))
        return calibration_source(self._model, token_windows(asked.text), tokens=asked.tokens, window=window)

    @cached_property
    def _parts(self) -> tuple[CalibrationSource, CalibrationSource]:
        return parted(self.source)

    @property
    def learned(self) -> CalibrationSource:
        return self._parts[0]

    @cached_property
    def strayed(self) -> CalibrationSource:
        """The part to choose by as layers are fitted to it, with tokens in it that are others."""
        return with_stray_tokens(self._model, self.learned, self._asked.stray)

    @cached_property
    def held_out(self) -> HeldOut:
        return HeldOut(self._model, self._parts[1])
