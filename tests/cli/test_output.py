from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from inference_pio.cli.output import Output, require_savable, require_writable
from inference_pio.errors import ArtifactError, InvalidSetting, MissingExtra, StorageError
from inference_pio.measure import Report


def test_words_go_to_standard_output_and_data_nowhere_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.show("a line [with] brackets " + "and more " * 30)
    output.stream("a piece")
    output.finish({"a": 1})
    out, err = capsys.readouterr()
    assert out == "a line [with] brackets " + "and more " * 30 + "\na piece"
    assert err == ""


def test_data_goes_to_a_file_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "deep" / "out.json"
    output = Output(str(target))
    assert list(tmp_path.iterdir()) == []
    output.finish({"a": [1, None]})
    assert json.loads(target.read_text()) == {"a": [1, None]}
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]
    assert str(target) in capsys.readouterr().out


def test_data_on_standard_output_stands_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("-")
    output.show("words")
    output.finish({"a": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1}
    assert err == "words\n"


def test_a_table_is_as_wide_as_it_must_be_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("x" * 50, "y" * 50)
    Output().show(table)
    assert "y" * 50 in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="it is a folder"):
        Output(str(tmp_path))
    with pytest.raises(StorageError, match="cannot write"):
        Output(str(tmp_path / "file" / "out.json"))
    with pytest.raises(StorageError, match="cannot write"):
        Output("/proc/out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_quiet_drops_words_and_keeps_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(str(tmp_path / "out.json"), quiet=True)
    output.show("words")
    output.stream("a text")
    output.finish({"a": 1})
    assert capsys.readouterr() == ("a text", "")
    assert (tmp_path / "out.json").is_file()


def test_a_page_is_written_beside_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "deep" / "page.html"
    output = Output("-", html_file=page)
    assert not page.parent.exists()
    output.finish(Report("tiny <b>").to_json())
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == "tiny <b>"
    assert err == f"report written to {page}\n"
    assert "tiny &lt;b&gt;" in page.read_text()


def test_a_page_that_cannot_be_made_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match="needs the name of a file"):
        Output(html_file=Path("-"))
    with pytest.raises(InvalidSetting, match="two files"):
        Output(str(tmp_path / "x"), html_file=tmp_path / "x")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match="report"):
        Output(html_file=tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_a_warning_is_told_on_quiet_terminals_too(capsys: pytest.CaptureFixture[str]) -> None:
    Output().warn("left out [x]")
    assert capsys.readouterr() == ("left out [x]\n", "")
    Output(quiet=True).warn("left out [x]")
    assert capsys.readouterr() == ("", "left out [x]\n")


def test_a_name_that_is_no_text_is_written_with_its_number(tmp_path: Path) -> None:
    name = b"old\xff".decode("utf-8", "surrogateescape")
    Output(str(tmp_path / "out.json"), html_file=tmp_path / "out.html").finish(Report(name).to_json())
    assert json.loads((tmp_path / "out.json").read_text())["model"] == name
    assert "old\\udcff" in (tmp_path / "out.html").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("words", [["list", "profiles"], ["list", "profiles", "--json"]])
def test_standard_output_on_a_full_disk_is_told_as_one(words: list[str]) -> None:
    code = "from inference_pio.cli import main; main()"
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run([sys.executable, "-c", code, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert answer.returncode == 1
    assert "error: no room to write standard output" in answer.stderr


def test_a_pipe_that_nobody_reads_ends_in_silence() -> None:
    code = "from inference_pio.cli import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        words = [sys.executable, "-c", code, "list", "profiles", "--json", "--quiet"]
        answer = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (answer.returncode, answer.stderr) == (1, "")


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b.json")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_may_be_written_to_and_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_writable(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    Output(str(pipe), quiet=True).finish({"answer": 42})
    assert json.loads(os.read(reader, 100)) == {"answer": 42}
    os.close(reader)
    assert pipe.is_fifo()


def test_only_a_new_or_empty_folder_or_an_older_save_is_savable(tmp_path: Path) -> None:
    for name in ("empty", "ours", "theirs"):
        (tmp_path / name).mkdir()
    (tmp_path / "ours" / "inference_pio.json").touch()
    (tmp_path / "theirs" / "thesis.txt").touch()
    require_savable(tmp_path / "new" / "deep")
    require_savable(tmp_path / "empty")
    require_savable(tmp_path / "ours")
    with pytest.raises(ArtifactError, match="choose another folder"):
        require_savable(tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="choose another folder"):
        require_savable(tmp_path / "theirs" / "thesis.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "ours", "theirs"]
