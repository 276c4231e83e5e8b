"""``python -m tests.device PART DIR MOST``: that many rows of a part on a GPU that is absent."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.__main__ import NO_GPU, missing

if __name__ == "__main__":
    if why := missing():
        sys.stderr.write(f"nothing launched: {why}\n")
        sys.exit(NO_GPU)
    parts: Any = import_module("tests.device.parts")
    parts.main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
