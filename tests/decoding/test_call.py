"""One call: how many steps it takes in one go, and when the host must look at every token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import MaxLengthCriteria, NoRepeatNGramLogitsProcessor, StoppingCriteria

from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.call import AHEAD, Call
from inference_pio.decoding.counts import Counts
from inference_pio.decoding.flights import IN_FLIGHT
from inference_pio.decoding.recordable import RecordableOperations
from tests import tiny

TOKENS = torch.ones(1, 3, dtype=torch.int64)


def call(processors: Any = (), criteria: Any = None, **settings: Any) -> Call:
    settled = GenerationConfig(max_length=9, do_sample=False, **settings)
    return Call(tiny.build("llama"), TOKENS, processors, criteria or [MaxLengthCriteria(9)], settled, None, {})


def prepared(one: Call) -> Call:
    decoder = decoder_of(one.model)
    assert isinstance(decoder, Decoder)
    one.prepare(Bucket(one.model, decoder, 1, 30, AHEAD), RecordableOperations(), Counts())
    return one


class Own(StoppingCriteria):
    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        return torch.zeros(1, dtype=torch.bool)


def test_the_device_chooses_unless_the_host_must_look() -> None:
    assert call().recipe is not None
    assert call([NoRepeatNGramLogitsProcessor(2)]).recipe is None
    watched = call(return_dict_in_generate=True, output_scores=True)
    assert watched.recipe is None
    assert watched.scores == []
    assert watched.raw is None
    assert call(output_scores=True).recipe is not None  # which nobody will see


def test_a_gpu_takes_several_steps_in_one_go_and_a_cpu_one() -> None:
    assert prepared(call()).ahead == 1
    for one, steps in ((call(), AHEAD), (call(criteria=[Own()]), 1), (call([NoRepeatNGramLogitsProcessor(2)]), 1)):
        prepared(one).bucket.device = torch.device("cuda")
        assert one.ahead == steps
    assert call().slack == AHEAD * (IN_FLIGHT + 1)


def test_steps_in_one_go_give_what_single_ones_give() -> None:
    found = []
    for ahead in (1, AHEAD):
        one = prepared(call())
        bucket = one.bucket
        with torch.no_grad():
            one.model(input_ids=TOKENS, past_key_values=bucket.cache, use_cache=True)
            bucket.slots.begin(TOKENS[:, -1], torch.tensor([3]), length=3, made=0)
            type(one).ahead, kept = property(lambda self, steps=ahead: steps), type(one).ahead  # type: ignore[misc]
            try:
                steps = one._steps()
            finally:
                type(one).ahead = kept  # type: ignore[misc]
            said: list[int] = []
            while len(said) < AHEAD:
                steps()
                said += bucket.slots.given[0, :ahead].tolist()
        found.append(said)
    assert found[0] == found[1]


def test_recorded_steps_are_kept_for_calls_that_choose_alike() -> None:
    one = prepared(call())
    assert one.runner() is one.runner()
    assert one.counts.recorded == 1
    one.bucket.padded = True
    one.runner()
    assert one.counts.recorded == 2
