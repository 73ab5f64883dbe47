from __future__ import annotations

import inference_pio
from inference_pio.integration.measured import prompt_tokens, status_for_report
from inference_pio.measure.text import evaluation_text
from tests import tiny
from tests.model_folder import QUICK, byte_tokenizer


def test_the_status_of_a_report_holds_no_receipt_a_second_time() -> None:
    model = inference_pio.optimize(tiny.build("llama"))
    status = status_for_report(model)
    assert [one["name"] for one in status["applied_optimizations"]] == [
        "tensor_compression",
        "flash_attention",
        "kernel_fusion",
    ]
    assert status["total_optimizations_available"] >= 2
    assert "receipt" not in str(status)


def test_speed_is_measured_on_real_text_where_there_is_a_tokenizer() -> None:
    model, tokenizer = tiny.build("llama"), byte_tokenizer()
    assert tokenizer.decode(prompt_tokens(model, tokenizer, QUICK)[0]) in evaluation_text()
    assert prompt_tokens(model, None, QUICK).shape == (1, QUICK.prefill_tokens)
