"""The engine: the library prepares a call, its prompt is read, then whole steps run at addresses that stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.cache import CodedCache, HostCache
from inference_pio.compat import library_decoding
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.call import AHEAD, Call
from inference_pio.decoding.check import why_step_differs
from inference_pio.decoding.coded_bucket import CodedBucket, why_not_coded_steps
from inference_pio.decoding.counts import Counts
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.prepare import most_tokens
from inference_pio.decoding.prompt_rules import PromptRules, in_a_line, rules_of
from inference_pio.decoding.stamp import Stamp, stamp_of, why_not_replaced
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import on_device

MOST_ROWS = 32
KEPT_ON_A_HOST = 2
"""Rooms, one for each number of rows, that a CPU keeps for the next call: its memory is everybody's."""
FIRST_ROOM = 1024
"""New tokens that room is made for at first; more room is made as they come."""


@dataclass(frozen=True)
class Built:
    """The parts of a model that steps are composed of, if they are known, and what they were found on."""

    decoder: Decoder | None
    stamp: Stamp
    broken: str | None
    prompts: PromptRules | None = None


class Engine:
    """Decodes for one model, a call at a time; others wait. `operations` say with what a step is computed.

    What it cannot decode, the library does, and `counts` says why. A copy of the model gets an engine of its own.
    """

    def __init__(self, operations: Operations) -> None:
        self.operations, self.counts = operations, Counts()
        self._turn = threading.Lock()
        self._inside: int | None = None
        self._built: Built | None = None
        self._buckets: dict[tuple[int, str | None], Bucket] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return Engine(self.operations.of_a_copy())

    @property
    def nbytes(self) -> int:
        """Bytes of room that is kept for the next call."""
        return sum(bucket.nbytes for bucket in self._buckets.values())

    @property
    def notes(self) -> list[str]:
        """What could not be found out for the operations, and so goes by rule."""
        return self.operations.notes

    def close(self) -> None:
        """Give all room and every recorded step back."""
        self._empty()
        self.operations.forget()
        self._built = None

    def why_never(self, model: nn.Module) -> str | None:
        """Why a model made of these parts is left to the library, whatever hangs on them now; None where it may not be.
        Runs the model on a few tokens, if nothing hangs on it.
        """
        self.why_not(model)
        return None if self._built is None else self._built.broken

    @property
    def why_no_prompts(self) -> str | None:
        """Why the library reads all prompts of the model that was last asked about, where operations could."""
        rules = None if self._built is None else self._built.prompts
        return None if rules is None else rules.every

    def why_not(self, model: nn.Module) -> str | None:
        """Why this model, as it is now, is left to the library, or None."""
        built, asks = self._built, self.operations.attends_as_configured
        if built is None or not built.stamp.is_of(model):
            self.close()
            decoder = decoder_of(model)
            if not isinstance(decoder, str) and (reason := why_not_replaced(model, decoder, asks_patterns=asks)):
                return reason
            self._built = built = self._build(model, decoder)
        if built.broken or built.decoder is None:
            return built.broken
        return why_not_replaced(model, built.decoder, asks_patterns=asks, parts=built.stamp.parts)

    def _build(self, model: nn.Module, decoder: Decoder | str) -> Built:
        """What is found out about a model as it is, on a few tokens: whether steps and prompts may be composed."""
        if isinstance(decoder, str):
            return Built(None, stamp_of(None, model), decoder)
        broken = why_step_differs(model, decoder, self.operations)
        reads = broken is None and self.operations.reads_prompts
        rules = rules_of(model, decoder, self.operations) if reads else None
        return Built(decoder, stamp_of(decoder, model), broken, rules)

    def decode(
        self, model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        synced_gpus: bool = False, streamer: Any = None, **given: Any,
    ) -> Any:  # fmt: skip
        """What stands in for the library's `_sample`, with its arguments and its results."""
        reason: str | None = "a call from inside another, by a streamer, a criterion or a processor"
        if self._inside != threading.get_ident():
            with (
                self._my_turn(),
                on_device(next(model.parameters())),
            ):  # events and recordings belong to the current GPU
                reason = _why_not_these(input_ids) or self.why_not(model) or self._why_not_cache(model, given)
                call = None
                if reason is None:
                    call = Call(
                        model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, dict(given)
                    )
                    reason = self._prepare(model, call)
                if call is not None and reason is None:
                    return call.run()
        return self._library(
            reason, model, input_ids, logits_processor=logits_processor, stopping_criteria=stopping_criteria,
            generation_config=generation_config, synced_gpus=synced_gpus, streamer=streamer, **given,
        )  # fmt: skip

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """One call at a time; which thread is inside is known, since one that waited for itself would wait for ever."""
        with self._turn:
            self._inside = threading.get_ident()
            try:
                yield
            finally:
                self._inside = None

    def _prepare(self, model: nn.Module, call: Call) -> str | None:
        """Make room for a call, with all room for others given up if it must be; why there is none, or None."""
        assert self._built is not None
        assert self._built.decoder is not None
        prompt, most = most_tokens(call.settled, call.prompt, call.given)
        wanted = prompt + min(most, FIRST_ROOM) + call.slack
        for _ in range(2):
            try:
                call.prepare(  # a name for the bucket would keep its memory through the next try
                    self._bucket(model, self._built.decoder, len(call.prompt), wanted, _format_of(call.given)),
                    self.operations, self.counts,
                )  # fmt: skip
            except torch.OutOfMemoryError:
                call.let_go()
            except InvalidSetting as error:  # rows padded elsewhere than on the left
                return str(error)
            except Exception as error:  # a compiler or a driver may raise anything; the call can still be decoded
                call.let_go()
                self._empty()
                return f"steps could not be recorded ({in_a_line(error)})"
            else:
                if self._built.prompts is not None:
                    call.prepare_prompt(self._built.prompts)
                return None
            self._empty()  # here, where no traceback holds what was tried
        return "there was not enough memory for a cache and recorded steps of its own"

    def _bucket(self, model: nn.Module, decoder: Decoder, rows: int, tokens: int, kv_format: str | None) -> Bucket:
        key = (rows, kv_format)
        if key in self._buckets and self._buckets[key].capacity < tokens:
            self._buckets.pop(key).close()
        found = self._buckets.pop(key, None)
        if found is None:
            while decoder.device.type == "cpu" and len(self._buckets) >= KEPT_ON_A_HOST:
                self._buckets.pop(next(iter(self._buckets))).close()  # the one that was used longest ago
            plain = Bucket(model, decoder, rows, tokens, AHEAD) if kv_format is None else None
            found = plain or CodedBucket(model, decoder, rows, tokens, AHEAD, str(kv_format))
        self._buckets[key] = found
        return found

    def _why_not_cache(self, model: nn.Module, given: Mapping[str, Any]) -> str | None:
        """Why the library must decode a call with the cache that was made for it, or None."""
        cache = given.get("past_key_values")
        if isinstance(cache, HostCache):
            return "its cache lies on the host, from which recorded steps do not read"
        if not isinstance(cache, CodedCache):
            return None
        assert self._built is not None
        return why_not_coded_steps(cache, self._built.decoder, next(model.parameters()).device)

    def _empty(self) -> None:
        while self._buckets:
            self._buckets.popitem()[1].close()

    def _library(self, reason: str | None, model: Any, tokens: Tensor, **given: Any) -> Any:
        self.counts.left[str(reason)] += 1
        return library_decoding(model, given["generation_config"])(model, tokens, **given)


def _format_of(given: Mapping[str, Any]) -> str | None:
    """How a call's keys and values are kept as codes, if they are."""
    cache = given.get("past_key_values")
    return cache.kv_format if isinstance(cache, CodedCache) else None


def _why_not_these(tokens: Tensor) -> str | None:
    if not 1 <= len(tokens) <= MOST_ROWS:
        return f"a batch of more than {MOST_ROWS} rows"
    if torch.is_autocast_enabled(tokens.device.type):
        return "autocast is on, and recorded steps compute in the dtypes of the weights"
    return None
