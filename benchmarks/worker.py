"""The process of one system: reads a word of JSON a line, answers with one, and takes its faults along when it ends."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from typing import Any

from benchmarks.jobs import Job, Unavailable, make_job


class Handler:
    """Answers "set up" and "round"; whatever goes wrong becomes an answer too."""

    def __init__(self, suite: str, arm: str, *, device: str, smoke: bool) -> None:
        self._given = (suite, arm), {"device": device, "smoke": smoke}
        self._job: Job | None = None

    def answer(self, word: str) -> dict[str, Any]:
        try:
            if word == "set up":
                names, options = self._given
                self._job = make_job(*names, **options)
                return self._job.set_up()
            assert self._job is not None, "set up first"
            return self._job.round()
        except Unavailable as error:
            return {"unavailable": str(error)}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            return {"failed": f"{type(error).__name__}: {_first_lines(error)}"}

    def close(self) -> None:
        if self._job is not None:
            self._job.close()
            self._job = None


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("suite")
    options.add_argument("arm")
    options.add_argument("--device", default="cpu")
    options.add_argument("--smoke", action="store_true")
    options.add_argument("--answers", type=int, required=True, help="the file descriptor that answers go to")
    given = options.parse_args()
    handler = Handler(given.suite, given.arm, device=given.device, smoke=given.smoke)
    with os.fdopen(given.answers, "w") as answers:
        for line in sys.stdin:
            answers.write(json.dumps(handler.answer(json.loads(line))) + "\n")
            answers.flush()
    handler.close()


if __name__ == "__main__":
    main()
