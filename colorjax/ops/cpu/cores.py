"""How many CPU cores this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """The CPU cores that this process may use: at least 1.

    The smaller of the cores that it is allowed to run on and the quota of its control groups (a container's
    `--cpus`), rounded up.

    Args:
        root: where `proc` and `sys` lie; another folder only in tests.
    """
    if count := getattr(os, "process_cpu_count", None):  # from Python 3.13 on
        cores = count()
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return max(1, min([cores or 1, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's control groups and of all groups above them, in cores."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        # Version 2 has one hierarchy and no names; in version 1 `cpu` may share its hierarchy with others.
        if not controllers:
            mounts, files = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"]
            files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        path = Path(group.lstrip("/"))
        # In a container the group's own folder may be mounted as the top one.
        for folder in (root / mount / part for mount in mounts for part in (path, *path.parents)):
            values = [value for file in files for value in _read(folder / file).split()]
            if len(values) == 2 and all(value.isdigit() for value in values):  # no quota is "max" or -1
                quota, period = map(int, values)
                if quota and period:
                    yield quota / period


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
