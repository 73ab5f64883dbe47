from __future__ import annotations

import subprocess
import sys
import time

from inference_pio.measure.neighbours import Neighbours


def test_another_process_that_computes_is_seen():
    spin = "import time; end = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as neighbour:
        neighbours = Neighbours()
        time.sleep(0.6)
        busy = neighbours.cores_busy()
        neighbour.kill()
    assert busy > 0.2  # on a crowded machine the neighbour does not get a whole core, but others then are seen


def test_this_process_is_not_its_own_neighbour(monkeypatch):
    readings = iter([(10.0, 100.0, 5.0), (12.0, 103.0, 8.0)])  # wall, all cores, own: 3 s of work, all of it ours
    monkeypatch.setattr(Neighbours, "_read", staticmethod(lambda: next(readings)))
    assert Neighbours().cores_busy() == 0.0
