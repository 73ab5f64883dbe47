"""Forty kinds of bad calls: each ends with its code, says what is wrong and the way out, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import inference_pio
from inference_pio.cli import app
from inference_pio.configuration import ConfigManager
from inference_pio.integration.many_profiles import ManyProfiles
from inference_pio.integration.side_by_side import SideBySide
from tests import tiny
from tests.model_folder import byte_tokenizer

NO_MEMBER = " ".join(f"--disable {name}" for name in ConfigManager().get_profile("lossless").default_settings)
BAD_CALLS = [  # the words (M: a model, S: a saved one, D: an empty folder to write in), the exit code, what is told
    ("optimise M", 2, "optimise"),
    ("plan", 2, "MODEL"),
    ("plan M another", 2, "another"),
    ("plan M --profil balanced", 2, "--profil"),
    ("plan M --profile", 2, "--profile"),
    ("plan M --profile fast", 1, "unknown profile 'fast'. Known: balanced"),
    ("plan M --profile losless", 1, "Did you mean 'lossless'?"),
    ("plan M --enable flash", 1, "Did you mean 'flash_attention'?"),
    ("plan M --disable flash", 1, "unknown optimization 'flash'"),
    ("plan M --set flash_attention", 2, "NAME.KEY=VALUE"),
    ("plan M --set flash_attention.use_triton", 2, "NAME.KEY=VALUE"),
    ("plan M --set flash.use_triton=true", 1, "Did you mean 'flash_attention'?"),
    ("plan M --set flash_attention.triton=1", 1, "use_triton"),
    ("plan M --set flash_attention.use_triton=maybe", 1, "use_triton"),
    ("plan M --set tensor_compression.format=int7", 1, "int8"),
    ("plan M --set a.b=1 --set a.b=2", 2, "given twice"),
    ("plan M --enable flash_attention --disable flash_attention", 1, "give one of them"),
    (f"plan M --profile lossless {NO_MEMBER}", 1, "nothing is left of"),
    ("plan M --device moon", 1, "device='moon'"),
    ("plan M --device cuda:99", 1, "device='cuda:99'"),
    ("plan M --dtype int3", 2, "int3"),
    ("plan D/nowhere", 1, "there is no folder or file"),
    ("plan D", 1, "config.json"),
    ("plan D/nowhere.gguf", 1, "nowhere.gguf"),
    ("plan M --json /proc/out.json", 1, "choose a folder that you may write to"),
    ("plan M --json D/", 1, "it is a folder. Give the name of a file"),
    ("plan M --report /proc/out.html", 1, "choose a folder that you may write to"),
    ("plan M --report -", 1, "needs the name of a file"),
    ("plan M --report D/x --json D/x", 1, "give them two files"),
    ("plan M --trust-remote-code=yes", 2, "--trust-remote-code"),
    ("optimize M --save /proc/saved", 1, "choose a folder that you may write to"),
    ("optimize M --save /usr", 1, "choose another folder"),
    ("optimize M --no-measure --save D/x --json D/x", 1, "give them two places"),
    ("optimize M --no-measure --save D/x --report D/x", 1, "give them two places"),
    ("plan " + 300 * "x", 1, "a hub id looks otherwise"),
    ("plan ~nobody/models", 1, "there is no folder or file"),
    ("generate S --prompt x --device moon", 1, "device='moon'"),
    ("generate S --prompt x --device cuda:99", 1, "device='cuda:99'"),
    ("generate M --prompt \udcff", 1, "is no text"),
    ("optimize M --no-measure --check-targets", 2, "leave --no-measure out"),
    ("optimize M --no-measure --each-step", 2, "leave --no-measure out"),
    ("optimize M --report", 2, "--report"),
    ("generate M", 2, "--prompt"),
    ("generate M --prompt x --max-new-tokens 0", 2, "--max-new-tokens"),
    ("generate M --prompt x --max-new-tokens many", 2, "integer"),
    ("generate M --prompt x --plain --profile lossless", 2, "leave --profile out"),
    ("plan M --profile D/nowhere.yaml", 1, "nowhere.yaml cannot be read"),
    ("plan M --profile D/../old.json", 1, "is not the JSON that is expected"),
    ("list --json D/" + 300 * "x", 1, "File name too long"),
    ("optimize M --save D/" + 300 * "x", 1, "File name too long"),
    ("migrate .", 1, "."),
    ("compare M", 2, "--profiles"),
    ("compare M --profiles balanced,", 2, "not a list of names"),
    ("compare M --profiles balanced,balanced", 2, "balanced is given twice"),
    ("compare M --profiles balanced,fast", 1, "unknown profile 'fast'"),
    ("list models", 2, "models"),
    ("doctor --device moon", 1, "device='moon'"),
    ("doctor --json /proc/doctor.json", 1, "cannot write /proc/doctor.json"),
    ("migrate", 2, "OLD"),
    ("migrate D/nowhere.yaml", 1, "nowhere.yaml"),
    ("migrate D/../old.txt", 1, "old.txt"),
    ("migrate D/../old.txt D/../old.txt", 1, "is the old file itself"),
]


def test_there_are_forty_kinds_and_more() -> None:
    assert len({call for call, _, _ in BAD_CALLS}) >= 40


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was saved optimized."""
    model = tiny.build("llama")
    inference_pio.optimize(model, "lossless")
    return inference_pio.save(model, tmp_path_factory.mktemp("saved") / "llama", byte_tokenizer())


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong is told before the long work begins."""
    monkeypatch.delattr(SideBySide, "measure")
    monkeypatch.delattr(ManyProfiles, "measure")


@pytest.mark.parametrize(("call", "code", "told"), BAD_CALLS, ids=[call for call, _, _ in BAD_CALLS])
def test_it_is_told_and_nothing_is_touched(
    call: str, code: int, told: str, llama_folder: Path, saved_folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("old.txt", "old.json"):
        (tmp_path / name).write_text("just words")
    words = [word.replace("D", str(empty), 1) if word[0] == "D" else word for word in call.split()]
    folders = {"M": str(llama_folder), "S": str(saved_folder)}
    words = [folders.get(word, word) for word in words]
    before = everything_in(tmp_path, llama_folder, saved_folder)
    answer = CliRunner().invoke(app, words, env={"COLUMNS": "200", "HF_HUB_OFFLINE": "1"})
    assert answer.exit_code == code, answer.output
    assert told in " ".join(answer.stderr.split()), answer.stderr
    assert "Traceback" not in answer.output
    assert "should not happen" not in answer.output
    assert answer.stdout == ""
    assert everything_in(tmp_path, llama_folder, saved_folder) == before


def everything_in(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for each in folders for path in each.rglob("*")}
