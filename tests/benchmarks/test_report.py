"""README's tables are what the results say; the rendering shows failures as plainly as speeds."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots, report, results, tables

ROOT = Path(__file__).parents[2]


def example(**arms: dict[str, Any]) -> results.Results:
    share = {"ceiling": "memory copy", "per_unit": 8.0, "unit": "GB/s"}
    ceilings = {"memory copy": {"value": 4000.0, "unit": "GB/s"}}

    def fast(label: str, speed: float) -> dict[str, Any]:
        cases = {
            "decode": results.case("tok/s", [speed, speed * 1.1, speed * 0.9], share, ceilings),
            "first token": results.case("s", [0.05], None, ceilings),
        }
        return {
            "label": label, "status": "ok", "reason": "", "notes": [], "cases": cases, "set_up_s": 40.0,
            "bytes": {"peak": 9e9, "weights": 8e9},
        }  # fmt: skip

    return {
        "schema": 1, "suite": "decode-x", "title": "X, decode", "kind": "decode", "baseline": "plain", "smoke": False,
        "device": "Some GPU", "date": "2026-11-23T00:00:00+00:00", "commit": "abc", "settings": {}, "waves": [],
        "machine": {"versions": {"torch": "2", "transformers": "5"}, "cpu": "a CPU"}, "ceilings": ceilings,
        "arms": {"plain": fast("generate", 50.0), "pio-lossless": fast("ours <&>", 100.0), **arms},
    }  # fmt: skip


BROKEN = {"label": "broken", "status": "wrong", "reason": "its logits lie 0.9 | off", "notes": [], "cases": {}}


def test_readme_holds_the_tables_of_the_recorded_results() -> None:
    text = (ROOT / "README.md").read_text()
    found = report.load(results.FOLDER)
    assert report.renewed(text, found) == text, "run: python benchmarks/report.py --write"
    page = (results.FOLDER / report.PAGE).read_text()
    assert report.page(found) == page, "run: python benchmarks/report.py --write"
    kernels = [one["title"] for one in found.values() if one["kind"] == "kernels"]
    assert kernels
    assert all(title in page and title not in text for title in kernels)


def test_the_drawings_are_those_of_the_recorded_results() -> None:
    for path, found in report.load(results.FOLDER).items():
        assert path.with_suffix(".svg").read_text() == plots.draw(found), "run: python benchmarks/report.py --write"


def test_a_table_shows_speed_ratio_share_and_what_was_wrong() -> None:
    text = tables.table(example(broken=BROKEN))
    assert "| generate | 50.0 (45.0-55.0) | 1.00x | 400 | 10% | 50 ms | 40 s | 9.0 GB |" in text
    assert "| **ours <&>** | 100.0 (90.0-110.0) | 2.00x | 800 | 20% | 50 ms | 40 s | 9.0 GB |" in text
    assert "| broken | wrong: its logits lie 0.9 / off |" in text


def test_a_drawing_is_whole_xml_with_a_bar_for_each_timed_system() -> None:
    root = ET.fromstring(plots.draw(example(broken=BROKEN)))
    assert len(root.findall("{http://www.w3.org/2000/svg}line")) == 2


def test_lengths_become_columns_and_a_missing_one_is_told() -> None:
    found = example()
    found |= {"kind": "prefill", "settings": {"lengths": [1024, 4096]}}
    found["arms"] = {name: arm | {"cases": {"1024": arm["cases"]["decode"]}} for name, arm in found["arms"].items()}
    assert "| generate | 50 | failed | 10% | 40 s | 9.0 GB |" in tables.table(found)
    assert "1K, tokens/s" in tables.table(found)
    assert "1024 tokens" in plots.draw(found)
    found["arms"]["plain"]["cases"]["1024"]["share"]["value"] = 4.27  # dense work over the time of less
    assert "| generate | 50 | failed | work is left out | 40 s | 9.0 GB |" in tables.table(found)


def test_kernels_have_a_row_a_size_and_a_column_a_system() -> None:
    found = example(broken=BROKEN) | {"kind": "kernels"}
    for arm in found["arms"].values():
        arm["cases"] = {"32768": arm["cases"]["decode"]} if arm["cases"] else {}
    del found["arms"]["plain"]["cases"]["32768"]
    found["arms"]["plain"]["cases"] = {"16384": found["arms"]["pio-lossless"]["cases"]["32768"]}
    text = tables.table(found)
    assert "|  | generate | **ours <&>** |" in text
    assert "| 16K | 100 tok/s, 20%, 1.00x | - |" in text
    assert "| 32K | - | 100 tok/s, 20% |" in text
    assert "| broken | wrong: its logits lie 0.9 / off |  |" in text
    assert "16384 tokens" in plots.draw(found)


def test_the_block_is_renewed_and_the_rest_stays(tmp_path: Path) -> None:
    readme = tmp_path / "TOP.md"
    opening = f"{report.OPENING}\nold\n{report.END_OF_OPENING}"
    readme.write_text(f"before\n{opening}\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    results.write(example(), tmp_path / "decode-x-some-gpu.json")
    report.main(["--write", "--results", str(tmp_path), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "2.00x" in text
    assert "old" not in text
    assert (tmp_path / "decode-x-some-gpu.svg").exists()
    with pytest.raises(ValueError, match="no block between"):
        report.renewed("nothing here", {})


def test_no_results_are_said_to_be_none() -> None:
    assert "No results are recorded yet" in tables.tables([])


def test_a_row_whose_rounds_gave_other_tokens_says_so() -> None:
    found = example()
    found["arms"]["plain"]["repeatable"], found["arms"]["pio-lossless"]["repeatable"] = True, False
    rows = [row for row in tables.table(found).splitlines() if "generate" in row or "ours" in row]
    assert [("not the same tokens" in row) for row in rows] == [False, True]
