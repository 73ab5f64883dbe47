"""The parent's side of a system: asks its process, waits no longer than it has, and kills what does not answer."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[1]
LOG_CHARACTERS, LOG_LINES, LOG_BYTES = 400, 25, 8192


class Fault(Exception):
    """The system failed, cannot run here, or did not answer; `status` says which, `log` what its process wrote last."""

    def __init__(self, status: str, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.status, self.log = status, log


class Worker(Protocol):
    def ask(self, word: str, timeout_s: float) -> dict[str, Any]: ...
    def close(self) -> None: ...


class ProcessWorker:
    """A process of its own: its memory, its compiled code, its process-wide patches and its crashes stay in it."""

    def __init__(self, suite: str, arm: str, *, device: str, smoke: bool) -> None:
        reading, writing = os.pipe()
        self._caches = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        words = [sys.executable, "-m", "benchmarks.worker", suite, arm, "--device", device, "--answers", str(writing)]
        self._process = subprocess.Popen(
            words + ["--smoke"] * smoke, stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, text=True,
            pass_fds=[writing], cwd=ROOT, start_new_session=True, env=_environment(self._caches.name),
        )  # fmt: skip
        os.close(writing)
        self._answers, self._rest = reading, b""

    def ask(self, word: str, timeout_s: float) -> dict[str, Any]:
        """Raises Fault for anything but an answer."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(word) + "\n")
            self._process.stdin.flush()
            line = self._read_line(time.monotonic() + timeout_s)
        except (BrokenPipeError, EOFError):
            raise Fault("failed", f"its process ended: {self._last_words()}") from None
        except TimeoutError:
            raise Fault("timeout", f"{word!r} took longer than {timeout_s:.0f} s", self._last_lines()) from None
        return checked(json.loads(line), self._last_lines)

    def close(self) -> None:
        """Let it end by itself for a moment (it deletes its files), then end it with its children."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # compilers it started live in its session
        self._process.wait()
        os.close(self._answers)
        self._log.close()
        self._caches.cleanup()

    def _read_line(self, deadline: float) -> bytes:
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError
            block = os.read(self._answers, 1 << 16)
            if not block:
                raise EOFError
            self._rest += block
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def _last_lines(self) -> str:
        """Of its log, which a traceback ends; read beside the process, which goes on writing at the same place."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - LOG_BYTES)
        return "\n".join(
            os.pread(self._log.fileno(), size - start, start).decode(errors="replace").splitlines()[-LOG_LINES:]
        )

    def _last_words(self) -> str:
        self._process.wait(10)
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split())
        return f"code {self._process.returncode}, {text[-LOG_CHARACTERS:]}"


class InlineWorker:
    """The same in this process: for smoke runs, where starting processes would take longer than the work."""

    def __init__(self, suite: str, arm: str, *, device: str, smoke: bool) -> None:
        from benchmarks.worker import Handler

        self._handler = Handler(suite, arm, device=device, smoke=smoke)

    def ask(self, word: str, timeout_s: float) -> dict[str, Any]:
        return checked(self._handler.answer(word))

    def close(self) -> None:
        self._handler.close()
        gc.collect()


def checked(answer: dict[str, Any], log: Callable[[], str] = str) -> dict[str, Any]:
    for status in ("unavailable", "failed"):
        if status in answer:
            raise Fault(status, answer[status], log() if status == "failed" else "")
    return answer


def _environment(caches: str) -> dict[str, str]:
    """Caches of its own too: what one system compiled must not shorten the set-up of the next."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TORCHINDUCTOR_CACHE_DIR": str(Path(caches, "inductor")),
        "TRITON_CACHE_DIR": str(Path(caches, "triton")),
    }
