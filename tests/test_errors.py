"""Errors say what, where and the way out, in one tree; unknown names come with the nearest known ones."""

from __future__ import annotations

import inspect
import pickle

import pytest

from inference_pio import errors
from inference_pio.errors import InferencePioError, MissingExtra, UnknownName

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, InferencePioError)]


def test_every_error_hangs_in_the_tree_and_stands_in_its_drawing() -> None:
    assert errors.__doc__ is not None
    for cls in CLASSES:
        assert cls.__name__ in errors.__doc__, f"{cls.__name__} is missing in the drawing of the tree"


def test_every_error_says_what_it_is_for() -> None:
    assert all(cls.__doc__ for cls in CLASSES)


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    told = str(UnknownName("profile", "balancd", ["balanced", "lossless"], where="in --profile"))
    assert told == "unknown profile 'balancd' in --profile. Did you mean 'balanced'? Known: balanced, lossless."
    assert str(UnknownName("profile", "x", [])) == "unknown profile 'x'. None is known."


def test_errors_are_the_builtin_ones_too_where_one_fits() -> None:
    assert issubclass(errors.UnknownName, LookupError)
    assert issubclass(errors.InvalidSetting, ValueError)
    assert issubclass(errors.InvalidModel, TypeError)
    assert issubclass(errors.StorageError, OSError)
    assert issubclass(errors.MissingExtra, ImportError)


@pytest.mark.parametrize("error", [UnknownName("profile", "x", ["y"], "here"), MissingExtra("gguf", "gguf", "reading")])
def test_errors_travel_between_processes(error: InferencePioError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert "profile" in str(again) or "gguf" in str(again)
