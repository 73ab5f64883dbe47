from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from inference_pio.errors import MissingExtra, StorageError
from inference_pio.measure.html.page import render_page, require_html, write_page
from inference_pio.measure.report import Report
from tests.measure.html.sample import profiles_of_record, recorded
from tests.measure.test_report import report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Elements(HTMLParser):
    """All tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("data", [recorded(), profiles_of_record(), report().to_json(), Report("x").to_json()])
def test_a_page_asks_for_nothing_from_anywhere(data: dict[str, object]) -> None:
    page = render_page(data)
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "action", "data", "poster", "srcset", "style"):
            assert attributes.get(name) in (None, "data:,"), (tag, attributes)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src &#39;none&#39;" in page
    assert len(page) < 200_000


def test_untrusted_names_and_settings_are_only_ever_text() -> None:
    plain = Elements(render_page(recorded())).found
    data = recorded(model=EVIL, profile=EVIL, notes=[EVIL] * 4, baseline_name=EVIL)
    data["receipts"][0]["parameters"] = {"format": EVIL}
    data["receipts"][0]["skipped"][0]["reason"] = EVIL
    data["receipts"][0]["sites"][0] = EVIL
    data["machine"]["cpu"] = EVIL
    data["shown_beside"][0]["name"] = EVIL
    page = render_page(data)
    found = Elements(page).found
    assert [tag for tag, _ in found] == [tag for tag, _ in plain]
    assert [sorted(attributes) for _, attributes in found] == [sorted(attributes) for _, attributes in plain]
    assert "{{ 7 * 7 }}" in page
    assert "<script>alert" not in page


def test_every_chart_speaks_to_those_who_hear_the_page() -> None:
    plots = [attributes for tag, attributes in Elements(render_page(recorded())).found if tag == "svg"]
    drawn = [attributes for attributes in plots if attributes.get("role") == "img"]
    assert len(drawn) > 25
    assert all(attributes.get("aria-label") for attributes in drawn)


def test_infinities_and_gaps_are_drawn_too() -> None:
    data = recorded()
    data["comparison"] |= {"decode_speedup": "inf", "perplexity_ratio": None, "weight_bytes_ratio": 0.0}
    data["optimized"] |= {"decode_tokens_per_s": "inf", "perplexity": None}
    data["comparison"]["intervals"]["prefill_ratio"] = [0.0, "inf"]
    assert "nan%" not in render_page(data)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_page(tmp_path / "deep" / "report.html", recorded())
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write_page(tmp_path / "file" / "report.html", recorded())


def test_without_jinja2_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"inference-pio\[report\]"):
        require_html()
