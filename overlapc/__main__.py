"""``python -m overlapc``: the command, also where its script is not on the path."""

import sys

from overlapc.cli import main

sys.exit(main())
