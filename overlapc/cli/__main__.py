"""``python -m overlapc.cli`` is the command ``overlapc``."""

import sys

from overlapc.cli import main

if __name__ == "__main__":
    sys.exit(main())
