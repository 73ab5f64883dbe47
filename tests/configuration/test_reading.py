from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.configuration.reading import DATA, read_document, read_settings, read_yaml
from inference_pio.errors import InvalidSetting


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_mapping_is_read_as_it_stands(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "a: {b: [1, true]}")) == {"a": {"b": [1, True]}}


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "a: 1"), ("a.json", '{"a": 1}')])
def test_a_mark_before_the_text_is_passed_over(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_document(tmp_path / name) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [unclosed", "line 1"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4, column 3, is not the YAML that is expected: 'c' is given twice"),
        ("- a\n- b\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("1: a", "keys must be words, and 1 is none"),
        ("[a]: b", "a key must be a word"),
        ("a: &x [1]\nb: *x\n", "line 2, column 4, is not the YAML that is expected: aliases (*name) are not read"),
        ("a: 2024-01-01", "a: only words, numbers"),
        ("a: 2024-99-99", "month must be in 1..12"),
        ("a: !!int x", "invalid literal"),
        ("a: .nan", "a: nan has no place in a file"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("a: " + "[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("a: " + "x" * 1_000_000, "larger than 1000 kB"),
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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": [1,}', "line 1, column 10, is not the JSON that is expected: Expecting value"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": NaN}', "a: nan has no place"),
        ("[1]", "must hold a mapping with words as keys, not list"),
        ('{"a": ' + "[" * 100_000, "nested too deep"),
        ('{"a": "\\ud800"}', "half a character"),
        ("", "Expecting value"),
    ],
)
def test_wrong_json_is_told_with_file_and_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InvalidSetting) as caught:
        read_document(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_the_ending_says_which_form_a_file_has(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "a.yml").write_text("a: 1")
    assert read_document(tmp_path / "a.json") == read_document(tmp_path / "a.yml") == {"a": 1}
    with pytest.raises(InvalidSetting, match="must end in"):
        read_document(tmp_path / "a.toml")


@pytest.mark.parametrize("odd", ["folder.yaml", "nul\0.yaml"])
def test_a_path_that_is_no_file_is_told(odd: str, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InvalidSetting, match=r"folder|null"):
        read_document(tmp_path / odd)


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


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "1.e-3", ".1e-2", "+1e-3", "0.001"])
def test_a_number_with_an_exponent_is_a_number(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(f"name: mine\nmax_kl: {text}\ndefault_settings:\n  flash_attention:\n")
    assert read_settings(path, GlobalOptimizationProfile).max_kl == 0.001


@pytest.mark.parametrize("text", ["e3", "1e", "1e-3s", "1e-", "'1e-3'", "v1e3"])
def test_a_word_is_a_word(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(f"name: {text}\n")
    assert read_yaml(path)["name"] == text.strip("'")
