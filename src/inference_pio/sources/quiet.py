"""Keeps the libraries' bars and remarks off the screen while a model is read, one at a time; errors pass through."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

_one_at_a_time = threading.RLock()
"""The library's switches are the process's, and so is what it changes while it makes a model: two threads in there at
once leave its `tie_weights` switched off for good."""


@contextmanager
def quiet_library() -> Iterator[None]:
    """No bars and no log lines below ERROR from transformers inside the block; its settings come back after it.

    A second thread waits until the first has left it.
    """
    with _one_at_a_time, _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with hub_bars(shown=False):  # outermost: the library's own switch moves the hub's along
        logging.set_verbosity_error()
        _switch(logging.disable_progress_bar)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                _switch(logging.enable_progress_bar)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """For bars that have no switch (reading a .gguf file): what is printed to standard error inside is dropped."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextmanager
def hub_bars(shown: bool) -> Iterator[None]:
    """Inside the block the hub's client shows download bars as the user has set it, or none."""
    were_off = are_progress_bars_disabled()
    if not shown:
        _switch(disable_progress_bars)
    try:
        yield
    finally:
        _switch(disable_progress_bars if were_off else enable_progress_bars)


def _switch(switch: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where HF_HUB_DISABLE_PROGRESS_BARS decides instead: let it decide
        switch()
