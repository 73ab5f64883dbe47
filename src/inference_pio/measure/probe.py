"""Everything about one model in one call: speed, memory and quality, with a word of progress on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.greedy import GreedyReference
from inference_pio.measure.measurement import Measurement, speed_medians
from inference_pio.measure.memory import Peak, peak_bytes, resident_bytes, weight_bytes
from inference_pio.measure.probe_settings import ProbeSettings
from inference_pio.measure.quality import Perplexity, Quality, compare, measure_perplexity
from inference_pio.measure.reference import Reference
from inference_pio.measure.speed import Speed, exercise, measure_speed
from inference_pio.measure.target import check_measurable, input_device, vocab_size
from inference_pio.measure.text import evaluation_tokens, sampled_tokens, text_source

Progress = Callable[[str, float], None]


def probe(
    model: nn.Module,
    tokenizer: Any = None,
    reference: Reference | None = None,
    held_bytes: int = 0,
    settings: ProbeSettings | None = None,
    progress: Progress | None = None,
    *,
    tokens: Tensor | None = None,
    speed: Speed | None = None,
) -> tuple[Measurement, Quality | None]:
    """Measure `model`; with a `reference`, on its tokens and beside what the original said.

    `held_bytes` is what is kept so that the original can be given back. `tokens` [windows, window] stand in for the
    default text. A `speed` measured elsewhere (in turn with other models) is taken over; one round then shows the peak.
    Raises MeasureError where there is no tokenizer, reference or tokens, and quality was not switched off.
    """
    work = _Work.of(model, tokenizer, reference.tokens if reference else tokens, settings)
    speed, peak = work.speed_and_peak(model, speed, progress)
    if reference is not None:
        quality = compare(reference, model, progress)
        found = Perplexity(quality.perplexity, quality.perplexity_interval, quality.tokens)
        return work.measurement(model, held_bytes, speed, peak, found), quality
    perplexity = None if work.tokens is None else measure_perplexity(model, work.tokens, progress)
    return work.measurement(model, held_bytes, speed, peak, perplexity), None


def probe_original(
    model: nn.Module,
    tokenizer: Any = None,
    settings: ProbeSettings | None = None,
    progress: Progress | None = None,
    *,
    tokens: Tensor | None = None,
    speed: Speed | None = None,
    directory: Path | None = None,
) -> tuple[Measurement, Reference]:
    """Measure the original and keep its answers for later; one pass over the text serves both. Close the reference."""
    work = _Work.of(model, tokenizer, tokens, settings)
    if work.tokens is None:
        raise MeasureError("a reference needs tokens to be recorded on: quality_tokens must not be 0")
    speed, peak = work.speed_and_peak(model, speed, progress)
    reference = Reference.record(model, work.tokens, directory, progress)
    reference.greedy = work.greedy_reference(model, reference)
    found = Perplexity(reference.perplexity, reference.perplexity_interval, reference.losses.numel())
    return work.measurement(model, 0, speed, peak, found), reference


@dataclass(frozen=True)
class _Work:
    """What one probe runs on."""

    settings: ProbeSettings
    tokens: Tensor | None
    prompt: Tensor
    source: str | None

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, tokens: Tensor | None, settings: ProbeSettings | None) -> _Work:
        check_measurable(model)
        fitted = (settings or ProbeSettings()).fitted(model)
        source = "the tokens that were given"
        if tokens is None and fitted.quality_tokens:
            tokens = evaluation_tokens(tokenizer, vocab_size(model), fitted.quality_tokens, fitted.window)
            source = text_source()
        if tokens is None:
            return cls(fitted, None, sampled_tokens(vocab_size(model) or 2, fitted.prefill_tokens), None)
        return cls(fitted, tokens, tokens.reshape(1, -1)[:, : fitted.prefill_tokens], source)

    def speed_and_peak(self, model: nn.Module, speed: Speed | None, progress: Progress | None) -> tuple[Speed, Peak]:
        settings = self.settings
        with peak_bytes(input_device(model)) as peak:
            if speed is not None:
                exercise(model, self.prompt, settings.new_tokens, settings.decode_prompt_tokens)
                return speed, peak
            timed = measure_speed(
                model,
                self.prompt,
                settings.new_tokens,
                settings.repeats,
                decode_prompt_tokens=settings.decode_prompt_tokens,
                progress=progress,
            )
        return timed, peak

    def greedy_reference(self, model: nn.Module, reference: Reference) -> GreedyReference | None:
        """What the original says after the first tokens of a few windows; None where it cannot or need not."""
        settings = self.settings
        if not settings.greedy_tokens or not callable(getattr(model, "generate", None)):
            return None
        prompts = reference.tokens[: settings.greedy_prompts, : settings.decode_prompt_tokens]
        return GreedyReference.record(model, prompts, settings.greedy_tokens)

    def measurement(
        self, model: nn.Module, held_bytes: int, speed: Speed, peak: Peak, perplexity: Perplexity | None
    ) -> Measurement:
        details = {
            "speed": speed.to_json(),
            "peak": peak.to_json(),
            "held_bytes": held_bytes,
            "quality": self._quality_details(perplexity),
            "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
        }
        return Measurement(
            **speed_medians(speed),
            weight_bytes=weight_bytes(model),
            resident_bytes=resident_bytes(model, held_bytes),
            peak_bytes=peak.peak_bytes,
            perplexity=perplexity.perplexity if perplexity else None,
            details=details,
        )

    def _quality_details(self, perplexity: Perplexity | None) -> dict[str, Any] | None:
        if perplexity is None or self.tokens is None:
            return None
        return {
            "perplexity_interval": list(perplexity.perplexity_interval),
            "tokens": perplexity.tokens,
            "windows": list(self.tokens.shape),
            "source": self.source,
        }
