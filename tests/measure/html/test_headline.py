from __future__ import annotations

import copy

from inference_pio.measure.html.change import change_of
from inference_pio.measure.html.columns import columns_of_report
from inference_pio.measure.html.headline import cards, sentence, versus
from inference_pio.measure.html.quantities import DECODE
from tests.measure.html.sample import recorded


def test_the_cards_have_one_order_and_form_for_gains_and_losses() -> None:
    data = recorded()
    found = cards(data["comparison"], columns_of_report(data))
    assert [(card.title, card.figure, card.meaning, card.kind) for card in found] == [
        ("Decode", "1.54×", "54% faster", "gain"),
        ("Prefill", "0.86×", "14% slower", "loss"),
        ("Memory of the model", "0.61×", "39% less", "gain"),
        ("Same next token", "96.2%", "as the original", "same"),
    ]
    assert found[0].below == ("21.6 → 33.2 tokens/s", "1.41–1.82× over the rounds", "against plain bfloat16")
    assert found[1].below[1] == "may be none: 0.75–1.19×"


def test_one_sentence_says_gains_and_losses_and_what_is_open() -> None:
    data = recorded()
    assert sentence(data["comparison"], columns_of_report(data)) == (
        "Beside plain bfloat16, the optimized model decodes 54% faster, prefills 14% slower (the rounds leave it open) "
        "and takes 39% less memory. It picks the same next token 96.2% of the time."
    )


def test_without_quality_nothing_is_said_of_it() -> None:
    data = recorded()
    comparison = {**data["comparison"], "top1_agreement": None, "kl_nats_per_token": None}
    assert len(cards(comparison, columns_of_report(data))) == 3
    assert "token" not in sentence(comparison, columns_of_report(data))


def test_the_decode_ratio_names_the_plain_model_that_it_is_against() -> None:
    data = copy.deepcopy(recorded())
    fast = data["shown_beside"][0]
    fast["decode_tokens_per_s"] = 30.0
    data["comparison"]["decode_speedup"] = data["optimized"]["decode_tokens_per_s"] / 30.0
    change = change_of(DECODE, data["comparison"])
    assert change is not None
    against = versus(DECODE, change, columns_of_report(data))
    assert against is not None
    assert against.name == "plain float32"


def test_without_a_comparison_there_is_no_headline() -> None:
    assert cards({}, []) == []
    assert sentence({}, []) == ""
