"""How much processor time a run has used, its children's included."""

from __future__ import annotations

import psutil


def cpu_seconds() -> float:
    """Seconds of processor time of this process and all its children, ended or running."""
    process = psutil.Process()
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:  # ended meanwhile: the next call finds it among the ended
            continue
        total += times.user + times.system
    return float(total)
