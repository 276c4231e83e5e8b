"""Links without root: the same program again, as root of a user namespace of its own.

Linux lets most users make one, and inside it they may make network namespaces. Everything in it
ends with the program.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

ENTERED = "LINK_USER_NAMESPACE"
"""Environment variable that marks the second run, so that there is no third."""

# `ip netns` keeps its names in /run, which an ordinary user cannot write to.
_PREPARE = "mount -t tmpfs tmpfs /run"


def rerun_if_it_helps(module: str) -> None:
    """Replace this process by ``python -m module`` in a user namespace; return where it cannot be.

    Returns at once for root, who needs none.
    """
    if os.geteuid() == 0 or ENTERED in os.environ or not works():
        return
    inside = command([sys.executable, "-m", module, *sys.argv[1:]])
    os.execvpe(inside[0], inside, {**os.environ, ENTERED: "1"})


def works() -> bool:
    """Whether network namespaces can be made in a user namespace here. Found out by making one."""
    probe = command(["sh", "-c", "ip netns add probe && ip netns del probe"])
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def command(argv: Sequence[str]) -> list[str]:
    """``argv`` as it is run in a user namespace, with network and mounts of its own."""
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    return [*unshare, "sh", "-c", f'{_PREPARE} && exec "$@"', "sh", *argv]
