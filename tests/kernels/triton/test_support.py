"""What no Triton kernel can serve is told before anything is launched, with its cause."""

from __future__ import annotations

import subprocess
import sys

import pytest

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton import support
from inference_pio.kernels.triton.attention_support import supports, supports_decode
from inference_pio.kernels.triton.support import Cause, require
from tests.kernels.triton.test_attention_support import cached, dense, lengths


def test_a_cpu_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "has_triton", lambda: True)
    told = supports(*dense())
    assert not told
    assert (told.cause, told.said) == (Cause.DEVICE, "it needs an NVIDIA GPU, and the tensors are on cpu")
    monkeypatch.setattr(support, "has_triton", lambda: False)
    assert supports(*dense()).cause is Cause.NO_TRITON
    assert supports_decode(*cached(), lengths()).cause is Cause.NO_TRITON


def test_require_raises_with_the_reason() -> None:
    require(support.YES)
    with pytest.raises(InvalidSetting, match=r"does not serve here: it has no dropout \(0.1 was asked for\)"):
        require(supports(*dense(), dropout=0.1))


def test_asking_loads_no_triton() -> None:
    asked = "from inference_pio.kernels.triton import attention_support, row_support, support; support.has_triton()"
    code = f"import sys; {asked}; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
