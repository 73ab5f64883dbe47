"""Walks over a model: paths, linear layers, fused experts and attention modules, each with its role."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.names import ADAPTED_PARAMETER
from inference_pio.anatomy.parts import is_adapted, is_experts, runs_attention, vision_paths, within
from inference_pio.anatomy.roles import roles_of
from inference_pio.errors import InvalidModel
from inference_pio.undo.module_walk import named_modules_of

Walk = Iterator[tuple[str, nn.Module, str]]
READ_WEIGHTS_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def every_module(module: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once, as `module.modules()` has them but in another order; sooner, as engines ask
    it for each call (by hand: 0.2 ms where that takes 0.7, for a model of 550).

    >>> len(every_module(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))))
    4
    """
    found, ahead = dict[int, nn.Module](), [module]
    while ahead:
        here = ahead.pop()
        if id(here) not in found:
            found[id(here)] = here
            ahead += [below for below in here._modules.values() if below is not None]
    return list(found.values())


def path_of(model: nn.Module, module: nn.Module) -> str:
    """The path under which `model.named_modules()` lists a module. Raises InvalidModel for one that is not in it.

    >>> path_of(model := nn.Sequential(nn.ReLU()), model[0])
    '0'
    """
    path: str
    for path, candidate in model.named_modules():
        if candidate is module:
            return path
    raise InvalidModel(f"this {type(module).__name__} is not a part of this {type(model).__name__}.")


def down_to(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules below a model, down to the one at a path.

    >>> [type(one).__name__ for one in down_to(nn.Sequential(nn.Sequential(nn.ReLU())), "0.0")]
    ['Sequential', 'ReLU']
    """
    for name in path.split(".") if path else ():
        model = model.get_submodule(name)
        yield model


def parent_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the one at a path, and the name it holds it under.

    Raises InvalidModel for the model itself, which nothing holds, and for a path that leads nowhere.

    >>> parent_of(model := nn.Sequential(nn.Sequential(nn.ReLU())), "0.0") == (model[0], "0")
    True
    """
    if not path:
        raise InvalidModel(f"the {type(model).__name__} itself has no parent: name a module inside it.")
    above, _, name = path.rpartition(".")
    try:
        model.get_submodule(path)
    except AttributeError as error:
        raise InvalidModel(f"{type(model).__name__} has no module {path!r}: {error}.") from error
    return model.get_submodule(above), name


def linears(model: nn.Module) -> Walk:
    """Every `nn.Linear` and `Conv1D` (its weight is [in, out]) that computes as such: path, module, role.

    Left out are subclasses with a forward of their own, and layers whose weight another module reads behind their
    back: what they compute is not told by their class.

    >>> [(path, role) for path, _, role in linears(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
    [('0', 'unknown')]
    """
    return _walk(model, is_linear)


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes what `nn.Linear` or `Conv1D` computes, by their own forward."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in (nn.Linear, Conv1D))


def experts(model: nn.Module) -> Walk:
    """Every module that holds the weights of many experts in one tensor each: path, module, role.

    Left out, as among the linear layers, is what another module reads behind its back.
    """
    return _walk(model, is_experts)


def _walk(model: nn.Module, takes: Callable[[nn.Module], bool]) -> Walk:
    roles = roles_of(model)
    readers = [path for path, module in model.named_modules() if _reads_weights_inside(module)]
    for path, module in list(model.named_modules()):
        if takes(module) and not any(within(path, reader) for reader in readers):
            yield path, module, roles.get(path, "unknown")  # a parametrized layer holds no weights itself


def _reads_weights_inside(module: nn.Module) -> bool:
    """Whether a module computes with the weights of the modules inside it, without calling them."""
    return isinstance(module, READ_WEIGHTS_DIRECTLY) or (is_adapted(module) and hasattr(module, ADAPTED_PARAMETER))


def attention_modules(model: nn.Module) -> Walk:
    """Every module that runs attention through the library's interface: path, module, "attention" or "vision"."""
    named = named_modules_of(model)
    towers = vision_paths(model, named)
    for path, module in named:
        if runs_attention(module):
            yield path, module, "vision" if any(within(path, tower) for tower in towers) else "attention"
