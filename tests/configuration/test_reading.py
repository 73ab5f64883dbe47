from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.configuration.reading import DATA, read_settings, read_yaml
from inference_pio.errors import InvalidSetting


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_mapping_is_read_as_it_stands(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "a: {b: [1, true]}")) == {"a": {"b": [1, True]}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [unclosed", "line 1"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4, column 3, is not the YAML that is expected: 'c' is given twice"),
        ("- a\n- b\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("1: a", "words as keys"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (b"\xff\xfe\x00", "is not the YAML that is expected"),
    ],
)
def test_wrong_yaml_is_told_with_file_and_place(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidSetting) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"nowhere\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: mine\ndefault_setings: {a: }", "Did you mean 'default_settings'?"),
        ("name: mine", "default_settings: Field required"),
        ("name: 3\ndefault_settings: {a: }", "name: Input should be a valid string"),
        ("name: mine\ndefault_settings: {a: 3}", "default_settings.a"),
    ],
)
def test_wrong_settings_are_told_with_file_and_entry(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidSetting) as caught:
        read_settings(path, GlobalOptimizationProfile)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_all_data_lies_inside_the_package_and_so_in_the_wheel() -> None:
    package = Path(__file__).parents[2] / "src" / "inference_pio"
    assert DATA.is_relative_to(package)
    assert len(list(DATA.rglob("*.yaml"))) >= 8
