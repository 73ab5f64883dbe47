"""Any words on the command line: each call works or says in a few lines what is wrong, and never breaks down."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from inference_pio.cli import app
from tests.sweep import NAMES, turn_of_this_commit

COMMANDS = ["plan", "list", "migrate", "generate", "optimize --no-measure", "compare", "", "doctor --device moon"]
OPTIONS = [
    "--profile", "--enable", "--disable", "--set", "--device", "--dtype", "--json", "--report", "--save", "--prompt",
    "--max-new-tokens", "--plain", "--profiles", "--no-measure", "--check-targets", "--help", "--family", "--seed",
    "--trust-remote-code", "--", "-", "-q", "--quiet", "--tokenizer", "--revision", "--keep-originals",
]  # fmt: skip
SETTINGS = [
    "use_triton",
    "format",
    "group_size",
    "kv_cache",
    "threads",
    "host_budget",
    "pruning_ratio",
    "edits",
    "levels",
]
VALUES = ["true", "1", "0", "-1", "nan", "1e999", "int4", "int8", "[1, 2]", "{a: b}", "null", "'", "[", "50%", "\udcff"]
KNOWN = [
    "balanced",
    "lossless",
    "memory_efficient",
    "cpu",
    "cuda:99",
    "float32",
    "bfloat16",
    "text",
    "old.json",
    "new/x",
]
JUNK = st.text(max_size=6) | st.sampled_from([*VALUES, "a/b", "~x", "\x00", "é", 200 * "x", "/proc/x", ".", "..", ""])
SET = st.builds("{}.{}={}".format, st.sampled_from(NAMES), st.sampled_from(SETTINGS), st.sampled_from(VALUES) | JUNK)
WORD = st.sampled_from(OPTIONS) | st.sampled_from([*NAMES, *KNOWN]) | SET.map(lambda word: f"--set={word}") | JUNK


@pytest.mark.parametrize("calls", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_words_break_it(calls: int, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "text").write_text("just words")
    (tmp_path / "old.json").write_text('{"use_flash_attention": true, "sparse": [1, {}]}')

    @seed(turn_of_this_commit())
    @settings(
        deadline=None, database=None, max_examples=calls, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(st.sampled_from(COMMANDS), st.booleans(), st.lists(WORD, max_size=5))
    def check(command: str, model: bool, words: list[str]) -> None:
        given_words = [*command.split(), *([str(llama_folder)] if model else []), *words]
        answer = CliRunner().invoke(app, given_words, env={"COLUMNS": "120"})
        assert answer.exception is None or isinstance(answer.exception, SystemExit), given_words
        assert answer.exit_code in (0, 1, 2, 3), (given_words, answer.exit_code)
        assert "Traceback" not in answer.output, given_words
        assert "should not happen" not in answer.output, given_words
        assert answer.output.strip() or answer.exit_code == 0, given_words

    check()
