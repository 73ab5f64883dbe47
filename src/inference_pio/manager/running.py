"""Calls of a model that carries no guard yet, found on the stacks of this process's threads."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType

from torch import nn

from inference_pio.compat import codes_of_calls
from inference_pio.errors import ModelBusy
from inference_pio.undo.gate import INSIDE, still_computing
from inference_pio.undo.module_walk import modules_of

LOOK_AGAIN_S = 0.01


def wait_until_idle(model: nn.Module, timeout_s: float) -> None:
    """Raise ModelBusy from inside the model's own forward or generate at once, else after `timeout_s` of waiting.

    A call that begins later is not seen: the first apply needs a model that nobody calls meanwhile.
    """
    deadline = time.monotonic() + timeout_s
    while threads := threads_inside(model):
        if threading.get_ident() in threads:
            raise ModelBusy(INSIDE)
        if time.monotonic() >= deadline:
            raise ModelBusy(still_computing(timeout_s))
        time.sleep(LOOK_AGAIN_S)


def threads_inside(model: nn.Module) -> set[int]:
    """The threads that are computing with a model, or with a part of it."""
    codes = codes_of_calls(model)
    parts = {id(module) for module in modules_of(model)}
    found = set()
    for thread, innermost in sys._current_frames().items():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code in codes and id(frame.f_locals.get("self")) in parts:
                found.add(thread)
                break
            frame = frame.f_back
    return found
