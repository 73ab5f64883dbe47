"""Two thousand junk documents, ten thousand in `make verify`: each is right, or refused with the place of its fault."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from inference_pio.configuration import GlobalOptimizationProfile, ModelOptimizationConfig
from inference_pio.configuration.legacy import Migration, migrate
from inference_pio.configuration.legacy.words import DOCUMENT_KEYS, FLAGS, MEMBER_KEYS
from inference_pio.configuration.plain_data import Document
from inference_pio.configuration.reading import read_document
from inference_pio.configuration.shipped import create_balanced_profile, create_qwen_optimization_config
from inference_pio.configuration.writing import as_json, as_yaml, document_of
from inference_pio.errors import InferencePioError, InvalidSetting, UnknownName
from inference_pio.integration import apply_optimizations_by_config
from inference_pio.undo.fingerprint import fingerprint
from tests.configuration.legacy.later import one_day

NAMES = ["flash_attention", "tensor_compression", "snn", "sparse_attention", "kernel_fusion", "model_surgery"]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NAMES)
    | st.sampled_from(["true", "false", "1", "high", "glm", "qwen3", "int8", "\ud800", b"raw", 10**30])
)  # fmt: skip
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | SCALARS, inner, max_size=3),
    max_leaves=6,
)
PROFILE = document_of(create_balanced_profile()) | {"resource_constraints": {"max_memory_usage_ratio": 0.5}}
FAMILY = document_of(create_qwen_optimization_config())
MEMBERS = [
    dict(zip(MEMBER_KEYS, ("flash_attention", True, "attention", 10, ["snn"], {"use_triton": True}), strict=True))
]
LEGACY = dict(zip(DOCUMENT_KEYS, ("qwen", True, ["flash_attention"], [*MEMBERS, {"name": "snn"}]), strict=True))
RIGHT_FLAGS: dict[str, Any] = dict.fromkeys((name for name in FLAGS if name.startswith(("use", "enable"))), True)
REGISTRY = one_day()

TIMES = pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
quick = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@st.composite
def broken(draw: st.DrawFn, right: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A right document with one thing wrong (or by chance still right), and the words on the way to it."""
    document = copy.deepcopy(right)
    way, parent, key = draw(st.sampled_from(list(_places(document))))
    if isinstance(parent, dict) and draw(st.booleans()):
        odd = draw(st.text(max_size=6) | SCALARS)
        parent[odd] = parent.pop(key)
        return document, (*way, str(key), str(odd))
    parent[key] = draw(JUNK)
    return document, (*way, *_word(key))


def _places(part: Any, way: tuple[str, ...] = ()) -> Any:
    pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, inner in pairs:
        yield way, part, key
        yield from _places(inner, (*way, *_word(key)))


def _word(key: str | int) -> tuple[str, ...]:
    """Places in a list are told, too, but a number proves little."""
    return (key,) if isinstance(key, str) else ()


def check_told(error: InferencePioError, way: tuple[str, ...]) -> None:
    """The place is named: the key itself or, where a whole part is wrong, a part that it stands in."""
    told = str(error)
    assert any(key in told or repr(key)[1:-1] in told for key in way), (way, told)
    assert told.endswith("."), told


@TIMES
@pytest.mark.parametrize(("kind", "right"), [(GlobalOptimizationProfile, PROFILE), (ModelOptimizationConfig, FAMILY)])
def test_one_wrong_thing_in_a_document_is_told_with_its_place(
    kind: type[Document], right: dict[str, Any], times: int
) -> None:
    @settings(quick, max_examples=450 * times)
    @given(broken(right))
    def check(wrong: tuple[dict[str, Any], tuple[str, ...]]) -> None:
        document, way = wrong
        before = repr(document)
        try:
            read = kind.read(document, "mine")
        except (InvalidSetting, UnknownName) as error:
            check_told(error, way)
        else:
            assert kind.read(document_of(read), "mine") == read
        assert repr(document) == before

    kind.read(right, "mine")
    check()


@TIMES
@pytest.mark.parametrize("right", [LEGACY, RIGHT_FLAGS], ids=["document", "flags"])
def test_one_wrong_thing_in_a_legacy_form_is_told_with_its_place(right: dict[str, Any], times: int) -> None:
    @settings(quick, max_examples=300 * times)
    @given(broken(right))
    def check(wrong: tuple[dict[str, Any], tuple[str, ...]]) -> None:
        document, way = wrong
        before = repr(document)
        try:
            migration = migrate(document, REGISTRY)
        except (InvalidSetting, UnknownName) as error:
            check_told(error, way)
        else:
            assert isinstance(migration, Migration)
            assert migration.config.family in migration.yaml
        assert repr(document) == before

    migrate(right, REGISTRY)
    check()


@TIMES
def test_a_junk_config_is_applied_or_refused_and_then_touches_nothing(times: int) -> None:
    @settings(quick, max_examples=250 * times)
    @given(JUNK | st.dictionaries(st.sampled_from([*FLAGS, *DOCUMENT_KEYS, "family"]), JUNK, max_size=3))
    def check(junk: Any) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        before = fingerprint(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                apply_optimizations_by_config(model, junk)
        except InferencePioError:
            assert before.differences(fingerprint(model)) == []

    check()


TEXTS = st.one_of(
    st.binary(max_size=40),
    st.text(alphabet="ab:{}[]-#&*!?|>%@`'\"\n\t ,01.~é\x00", max_size=40).map(str.encode),
    st.sampled_from([as_yaml(PROFILE), as_yaml(FAMILY), as_json(PROFILE)]).flatmap(
        lambda text: st.tuples(st.integers(0, len(text)), st.binary(max_size=4)).map(
            lambda cut: text.encode()[: cut[0]] + cut[1] + text.encode()[cut[0] + 1 :]
        )
    ),
)


@TIMES
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_any_bytes_in_a_file_are_read_or_told_with_the_files_name(ending: str, times: int, tmp_path: Path) -> None:
    path = tmp_path / f"mine.{ending}"

    @settings(quick, max_examples=125 * times)
    @given(TEXTS)
    def check(raw: bytes) -> None:
        path.write_bytes(raw)
        told = _told(path)
        assert told is None or str(path) in told

    check()


def _told(path: Path) -> str | None:
    try:
        read_document(path)
    except InvalidSetting as error:
        return str(error)
    return None
