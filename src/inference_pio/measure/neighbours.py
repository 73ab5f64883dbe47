"""Who else was computing: a speed timed beside a busy neighbour says little, and the number itself does not show it."""

from __future__ import annotations

import time

import psutil

IDLE_FIELDS = ("idle", "iowait", "guest", "guest_nice")  # guest time is counted in user time already


class Neighbours:
    """From now on, how many of the machine's cores others keep busy; what the hypervisor takes counts as theirs."""

    def __init__(self) -> None:
        self._start = self._read()

    def cores_busy(self) -> float:
        """Cores that were not this process's, on average since the start; 0.0 on a machine that does nothing else."""
        now = self._read()
        wall_s, machine_s, own_s = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, (machine_s - own_s) / wall_s) if wall_s > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Seconds on the wall, of all cores together, and of this process."""
        times = psutil.cpu_times()._asdict()
        busy_s = sum(seconds for name, seconds in times.items() if name not in IDLE_FIELDS)
        return time.perf_counter(), busy_s, time.process_time()
