"""One call of `generate`: the prompt is read into our cache, then runs of steps bring token after token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from inference_pio.anatomy.attention_function import tell_passed_over
from inference_pio.compat import library_prefill, pad_token
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.counts import Counts
from inference_pio.decoding.flights import IN_FLIGHT, Flights
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.prepare import first_positions, most_tokens
from inference_pio.decoding.progress import Progress
from inference_pio.decoding.prompt_rules import PromptRules, in_a_line, why_not_this
from inference_pio.decoding.prompts import read_prompt, record_prompt
from inference_pio.decoding.runner import WARM_UPS, Runner, record
from inference_pio.decoding.sampling import Recipe, draw, recipe_of
from inference_pio.decoding.step import logits_of_step

RECORDED = "recorded steps, which attend to every token"
AHEAD = 4
"""Steps that a GPU takes in one go: the host looks at tokens once in so many."""


class Call:
    """`prepare` makes whatever may want memory; `run` decodes and gives what the library's `_sample` would."""

    def __init__(
        self, model: Any, tokens: Tensor, processors: Any, criteria: Any, settled: Any, streamer: Any,
        given: dict[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.prompt, self.processors, self.settled, self.given = model, tokens, processors, settled, given
        self.progress = Progress(tokens, criteria, pad_token(settled), streamer)
        self.detailed = bool(settled.return_dict_in_generate)
        self.scores: list[Tensor] | None = [] if self.detailed and settled.output_scores else None
        self.raw: list[Tensor] | None = [] if self.detailed and settled.output_logits else None
        found = recipe_of(processors, sampled=settled.do_sample, prompt=tokens.shape[1], device=model.device)
        watched = self.scores is not None or self.raw is not None
        self.recipe: Recipe | None = None if watched or isinstance(found, str) else found
        self.rules: PromptRules | None = None
        self.prompt_left: str | None = None

    def prepare(self, bucket: Bucket, operations: Operations, counts: Counts) -> None:
        """Take the bucket: rows told, stores made, steps recorded."""
        self.bucket, self.operations, self.counts = bucket, operations, counts
        bucket.clear(self.given.get("attention_mask"))
        bucket.furnish()
        if not operations.attends_as_configured:
            bucket.list_pages()
        bucket.slots.begin(self.prompt.new_zeros(1), self.prompt.new_zeros(1), length=0, made=0)
        if not bucket.prepared:
            operations.prepare(bucket.decoder, bucket)
            bucket.slots.begin(self.prompt.new_zeros(1), self.prompt.new_zeros(1), length=0, made=0)
            bucket.prepared = True
        if self.recipe is not None and self.recipe.marks:
            bucket.slots.mark(self.prompt, self.vocabulary, self.recipe.unmarked)
        if bucket.choices is not None:
            bucket.choices.begin()
            if bucket.choices.may_choose(sum(most_tokens(self.settled, self.prompt, self.given))):
                bucket.choices.sparse = True
                self.runner()
                bucket.choices.sparse = False
        self.runner()

    def prepare_prompt(self, rules: PromptRules) -> None:
        """Record what reads the prompt, or note why the library does."""
        self.rules = rules
        try:
            self.prompt_left = why_not_this(rules, self.bucket, self.model, self.prompt, self.given, self.settled)
            if self.prompt_left is None:
                start = time.perf_counter()
                self.counts.recorded += record_prompt(rules, self.bucket, self.operations, self.prompt.shape[1])
                self.counts.recording_s += time.perf_counter() - start
        except torch.OutOfMemoryError:
            self.prompt_left = "there was not enough memory to record it"
        except Exception as error:  # what a layer does may be nothing that can be recorded: it is not tried again
            self.prompt_left = f"it could not be recorded ({in_a_line(error)})"
            rules.fail(self.prompt.shape[1], self.bucket.padded, self.prompt_left)

    def let_go(self) -> None:
        """Hold no bucket any more, so that its memory is free."""
        vars(self).pop("bucket", None)

    @property
    def vocabulary(self) -> int:
        return int(self.bucket.decoder.head.out_features)  # type: ignore[arg-type]

    @property
    def ahead(self) -> int:
        """Steps of one run: one where the host must look at every token."""
        return AHEAD if self.recipe is not None and self.progress.hosted and self.bucket.device.type == "cuda" else 1

    @property
    def slack(self) -> int:
        """Tokens that runs on their way may write behind the last one asked for."""
        return AHEAD * (IN_FLIGHT + 1)

    def runner(self) -> Runner:
        """The recorded steps for this way of choosing; recorded now if they are not there."""
        key = (self.recipe.key if self.recipe else "logits", self.ahead, self.bucket.padded, self.bucket.sparse)
        found = self.bucket.runner(key)
        if found is None:
            start = time.perf_counter()
            found = record(self._steps(), self.bucket.slots.kept(), self.bucket.device)
            self.bucket.keep(key, found)
            self.counts.recorded += 1
            self.counts.recording_s += time.perf_counter() - start
        return found

    def run(self) -> Any:
        """The rest of the call."""
        cache = self.given["past_key_values"] = self.bucket.prompt_cache(self.given)
        logits = self._logits_of_prompt()
        held = cache.get_seq_length()
        ended = self._choose_here(logits)
        if not ended:
            self._begin(held, cache)
            for tokens in self._device_chooses(held) if self.recipe is not None else self._host_chooses(held):
                if self.progress.accept(tokens):
                    break
        self.progress.end()
        self.counts.calls += 1
        self.counts.new_tokens += self.progress.new * len(self.prompt)
        self._tell_patterns(self.progress.new - 1)
        return self._result(held + self.progress.new - 1, cache if ended else None)

    def _logits_of_prompt(self) -> Tensor:
        if self.rules is not None and self.prompt_left is None:
            self.counts.prompts += 1
            logits, self.given = read_prompt(self.rules, self.bucket, self.model, self.prompt, self.given)
            return logits
        if self.prompt_left is not None:
            self.counts.prompts_left[self.prompt_left] += 1
        outputs, self.given = library_prefill(self.model, self.prompt, self.settled, self.given)
        return outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=self.prompt.device)  # type: ignore[no-any-return]

    def _tell_patterns(self, steps: int) -> None:
        """Patterns hear of recorded steps; those that these do not ask, that they attend to every token."""
        if self.operations.attends_as_configured or not steps:
            return
        if self.bucket.choices is not None:
            self.bucket.choices.tell(steps)
        for layer in self.bucket.decoder.layers:
            if not self.bucket.knows_pages_of(layer.attention.module):
                tell_passed_over(layer.attention.module, RECORDED, steps)

    def _begin(self, held: int, cache: Any) -> None:
        """Stand behind the prompt and the first token chosen."""
        tokens = self.progress.tokens
        positions = first_positions(self.model, tokens, self.given, held)
        slots, coded = self.bucket.slots, self.bucket.seat(cache)
        slots.begin(tokens[:, -1], positions, length=held, made=1, starts=self.bucket.starts, coded=coded)
        if self.recipe is not None and self.recipe.marks:
            slots.mark(tokens, self.vocabulary, self.recipe.unmarked)
        self._lead = max(0, int(positions.max()) - held)

    def _device_chooses(self, held: int) -> Iterator[Tensor]:
        flights, sent, most = Flights(self.bucket.slots), 0, most_tokens(self.settled, self.prompt, self.given)[1] - 1
        while True:
            while len(flights) < flights.most and (sent < most or not len(flights)):  # none for tokens behind the last
                self._begin_run(held + sent)
                flights.launch(self.runner())
                sent += self.ahead
            yield from flights.land()[:, : self.ahead].unbind(1)

    def _host_chooses(self, held: int) -> Iterator[Tensor]:
        """The library's own processors look at every token; so may those who asked for scores."""
        while True:
            self._begin_run(held + self.progress.new - 1)
            self.runner().run()
            logits = self.bucket.logits.to(copy=True, device=self.prompt.device)
            tokens = self._chosen(logits)
            self.bucket.slots.leave(tokens.to(self.bucket.device), 0)
            yield tokens

    def _choose_here(self, logits: Tensor) -> bool:
        return self.progress.accept(self._chosen(logits))

    def _chosen(self, logits: Tensor) -> Tensor:
        scores = self.processors(self.progress.tokens, logits)
        if self.scores is not None:
            self.scores.append(scores)
        if self.raw is not None:
            self.raw.append(logits)
        return draw(scores, sampled=self.settled.do_sample)

    def _begin_run(self, held: int) -> None:
        """Room for one run more behind `held` tokens, and for the positions that those have; then the bucket's own."""
        wanted = held + self._lead + WARM_UPS * self.ahead  # they may be recorded here, which runs them so often first
        if wanted > self.bucket.capacity:
            self.bucket.grow(wanted, held)
        self.bucket.before_run(held, self.ahead)

    def _steps(self) -> Callable[[], None]:
        bucket, operations, recipe, ahead = self.bucket, self.operations, self.recipe, self.ahead

        def chosen_on_the_device() -> None:
            entered, bucket.steps = False, ahead
            for step in range(ahead):
                assert recipe is not None
                bucket.step = step
                logits = logits_of_step(bucket.decoder, operations, bucket, entered=entered)
                entered = operations.choose(recipe, logits, bucket.slots, step, enters=step + 1 < ahead)

        def logits_alone() -> None:
            bucket.step, bucket.steps = 0, 1
            bucket.logits.copy_(logits_of_step(bucket.decoder, operations, bucket))

        return logits_alone if recipe is None else chosen_on_the_device

    def _result(self, held: int, read: Any) -> Any:
        """Tokens, or all that was asked for; `read` is the cache of a prompt behind which no step was taken."""
        tokens = self.progress.tokens
        if not self.detailed:
            return tokens
        return GenerateDecoderOnlyOutput(
            sequences=tokens, scores=_tuple(self.scores), logits=_tuple(self.raw),
            past_key_values=self._kept(held, read),
        )  # fmt: skip

    def _kept(self, held: int, read: Any) -> Any:
        return self.bucket.handed_out(self.model, held) if read is None or read is self.bucket.cache else read


def _tuple(found: list[Tensor] | None) -> tuple[Tensor, ...] | None:
    return None if found is None else tuple(found)
