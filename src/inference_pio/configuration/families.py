"""`ModelFamily`: the names of model families, open to new ones, and which family a live model belongs to."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from inference_pio.configuration.reading import DATA, read_yaml
from inference_pio.errors import InvalidSetting, UnknownName

_lock = threading.RLock()
"""Held while families are read or added, so that no thread's family is lost to another's."""


class ModelFamily(str):
    """A family by name: the built-in ones are attributes, others are added with `register`.

    Raises UnknownName for a name that is not known.

    >>> ModelFamily.of("GLM") is ModelFamily.GLM
    True
    """

    __slots__ = ()
    GLM: ClassVar[ModelFamily]
    QWEN: ClassVar[ModelFamily]
    LLAMA: ClassVar[ModelFamily]
    MISTRAL: ClassVar[ModelFamily]
    OTHER: ClassVar[ModelFamily]
    _known: ClassVar[dict[str, ModelFamily]] = {}

    def __new__(cls, name: object) -> ModelFamily:
        found = cls._known.get(name.lower()) if isinstance(name, str) else None
        if found is None:
            raise UnknownName("family", name, cls._known)
        return found

    @classmethod
    def of(cls, name: object) -> ModelFamily:
        """The family of a name, in any case."""
        return cls(name)

    @classmethod
    def register(cls, name: str, model_types: Iterable[str] = ()) -> ModelFamily:
        """Add a family, told by these values of `config.model_type`; adding one again adds its types.

        >>> ModelFamily.register("glm", ["glm4_moe"])
        ModelFamily.GLM
        """
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise InvalidSetting(f"a family's name must be lower case words joined by underscores, not {name!r}.")
        with _lock:
            family = cls._known.get(name)
            if family is None:
                family = cls._known[name] = str.__new__(cls, name)
                setattr(cls, name.upper(), family)
            if types := list(model_types):
                _by_type().update(dict.fromkeys(types, family))
        return family

    @classmethod
    def known(cls) -> list[ModelFamily]:
        """All families, in the order they were added."""
        return list(cls._known.values())

    @property
    def name(self) -> str:
        return self.upper()

    @property
    def value(self) -> str:
        return str(self)

    @property
    def model_types(self) -> list[str]:
        """The values of `config.model_type` that tell this family."""
        return sorted(kind for kind, family in list(_by_type().items()) if family is self)

    def __str__(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"ModelFamily.{self.name}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        plain = core_schema.plain_serializer_function_ser_schema(str.__str__, return_schema=core_schema.str_schema())
        return core_schema.no_info_plain_validator_function(cls.of, serialization=plain)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Any word: which families there are is known only where they are registered."""
        return {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_]*$"}


for _name in ("glm", "qwen", "llama", "mistral", "other"):
    ModelFamily.register(_name)


def family_of_model(model: Any) -> ModelFamily:
    """The family of a live model by its `config.model_type`; OTHER where that is not known or there is none."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    found = _by_type().get(model_type) if isinstance(model_type, str) else None
    return found or ModelFamily.OTHER


def _by_type() -> dict[str, ModelFamily]:
    with _lock:
        return _families_by_type()


@functools.cache
def _families_by_type() -> dict[str, ModelFamily]:
    path = DATA / "model_types.yaml"
    return {kind: ModelFamily.of(family) for family, kinds in read_yaml(path).items() for kind in kinds}
