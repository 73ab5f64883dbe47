from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.configuration.reading import DATA, read_yaml
from inference_pio.configuration.schema import SCHEMAS, schema_of, shipped_schema, write_schemas


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_schema_is_the_one_that_the_settings_make(name: str) -> None:
    assert shipped_schema(name) == schema_of(SCHEMAS[name]), "write_schemas() of configuration/schema.py writes it anew"


def test_both_are_written_whole(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    for name in SCHEMAS:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_schemas_refuse_unknown_keys_and_tell_what_fields_mean() -> None:
    for kind in SCHEMAS.values():
        schema = schema_of(kind)
        for part in (schema, *schema["$defs"].values()):
            if part["type"] == "object":
                assert part["additionalProperties"] is False
                assert ">>>" not in part["description"]
    targets = schema_of(SCHEMAS["profile.schema.json"])["$defs"]["PerformanceTargets"]["properties"]
    assert all(field["description"] for field in targets.values())


@pytest.mark.parametrize("path", sorted(DATA.glob("[fp]*/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_names_its_schema_for_editors_and_only_its_keys(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=../")
    assert set(read_yaml(path)) <= set(shipped_schema(name)["properties"])
