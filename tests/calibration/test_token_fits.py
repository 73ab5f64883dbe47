"""The fits are those of what attentions were given and gave, and taking them leaves no trace."""

from __future__ import annotations

from typing import Any

import torch

from inference_pio.calibration.source import calibration_source
from inference_pio.calibration.token_fits import token_fits
from inference_pio.kernels.linear_fit import LinearFit
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

PATH = "model.layers.1.self_attn"


def test_they_come_from_all_tokens_and_leave_no_trace() -> None:
    model: Any = tiny.build("llama")
    rows = torch.randint(1, 120, (3, 40), generator=torch.Generator().manual_seed(0))
    source, before = calibration_source(model, rows), fingerprint(model)
    found = token_fits(model, source, [PATH])
    assert before.differences(fingerprint(model)) == []
    fit = LinearFit()
    attention = model.get_submodule(PATH)
    handle = attention.register_forward_hook(
        lambda _, args, kwargs, out: fit.add(kwargs["hidden_states"][0], out[0][0]), with_kwargs=True
    )
    with torch.no_grad():
        for row in rows:
            model(input_ids=row[None])
    handle.remove()
    for one, other in zip(found[PATH], fit.solve(), strict=True):
        torch.testing.assert_close(one, other)
    assert token_fits(model, source, []) == {}
