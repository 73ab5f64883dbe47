"""Which attention function a module runs: a dense one, and at most one pattern over it, each switched by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from inference_pio.anatomy.absorbed_decode import MOST_QUERIES, expanded, is_unexpanded
from inference_pio.anatomy.attention_name import OVER, dense_part, pattern_part
from inference_pio.anatomy.walk import attention_modules
from inference_pio.compat import ATTENTION_KEY, add_attention_function, attention_function, attention_name
from inference_pio.undo.journal import Journal

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""`attend(module, query, key, value, mask, **rest)`, in transformers' signature."""
Pattern = Callable[..., tuple[Tensor, Tensor | None]]
"""`pattern(attend, module, query, key, value, mask, **rest)`; what it leaves alone goes to the dense one."""

PassedOver = Callable[[nn.Module, str, int], object]
"""`passed_over(module, reason, calls)`."""
OF_PATTERN = "_inference_pio_of_pattern"
"""The attribute of a hook that serves a pattern alone: where no pattern is asked, nobody need call it."""
LATENT = "a latent cache that is decoded as it is"

_PATTERNS: dict[str, Pattern] = {}
_PASSED_OVER: dict[str, PassedOver] = {}
_CHAINS: dict[str, Attend] = {}


def add_pattern(name: str, pattern: Pattern, passed_over: PassedOver | None = None) -> None:
    """Make a pattern known, once; a name holds neither "flash" nor "sdpa", which the library reads a meaning into.

    `passed_over` hears of the calls that go to the dense function without the pattern being asked.
    """
    _PATTERNS[name], _PASSED_OVER[name] = pattern, passed_over or _nobody_hears


def run_dense(journal: Journal, model: nn.Module, paths: Collection[str], dense: str) -> None:
    """Let the attention modules at `paths` run a dense function (known to the library), under their pattern if any."""
    _switch(journal, model, paths, lambda now: _named(pattern_part(now), dense))


def run_pattern(journal: Journal, model: nn.Module, paths: Collection[str], pattern: str) -> None:
    """Let the attention modules at `paths` run a pattern over the dense function that they run now."""
    _switch(journal, model, paths, lambda now: _named(pattern, dense_part(now)))


def attend_as_configured(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
) -> Tensor:
    """What a module's own attention function makes of queries [B, heads, S, D], asked by name as its forward would."""
    attend: Attend = attention_function(attention_name(module.config) or "eager")
    return attend(module, query, key, value, mask, **rest)[0]


def attend_densely(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
) -> Tensor:
    """The same by the dense function alone, whatever pattern stands over it."""
    attend: Attend = attention_function(dense_part(attention_name(module.config) or "eager"))
    return attend(module, query, key, value, mask, **rest)[0]


def _named(pattern: str | None, dense: str) -> str:
    """The name under which the library finds a pattern over a dense function; made and added at first use."""
    if pattern is None:
        return dense
    name = f"{pattern}{OVER}{dense}"
    add_attention_function(name, _CHAINS.setdefault(name, _chain(pattern, dense)))
    return name


def _chain(pattern: str, dense: str) -> Attend:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
    ) -> tuple[Tensor, Tensor | None]:
        attend: Attend = attention_function(dense)
        if is_unexpanded(query, key):  # a latent cache that the dense function decodes as it is
            if query.shape[2] <= MOST_QUERIES:
                _PASSED_OVER[pattern](module, LATENT, 1)
                return attend(module, query, key, value, attention_mask, **rest)
            key, value = expanded(module, key, value)
        run = _PATTERNS[pattern]
        return run(attend, module, query, key, value, attention_mask, **rest)

    return attention


def tell_passed_over(module: nn.Module, reason: str, calls: int) -> None:
    """Tell the pattern that a module follows, if any, of calls that were computed densely without asking it."""
    pattern = pattern_part(attention_name(module.config) or "")
    if pattern is not None:
        _PASSED_OVER[pattern](module, reason, calls)


def _nobody_hears(module: nn.Module, reason: str, calls: int) -> None:
    """For patterns that count nothing."""


def _switch(journal: Journal, model: nn.Module, paths: Collection[str], change: Callable[[str], str]) -> None:
    """Rename what modules run: in a configuration that all its users share, else in single modules' own copies."""
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module, _ in attention_modules(model):
        users.setdefault(id(module.config), []).append((path, module))
    for modules in users.values():
        config: Any = modules[0][1].config
        acting = [module for path, module in modules if path in paths]
        name = change(attention_name(config) or "eager")
        if len(acting) == len(modules):
            journal.set(config, ATTENTION_KEY, name)
            continue
        for module in acting:
            own = copy.copy(config)
            vars(own)[ATTENTION_KEY] = name
            journal.set(module, "config", own)
