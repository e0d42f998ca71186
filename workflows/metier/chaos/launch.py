"""`metier` under a clock that can be stepped: `python -m metier.chaos.launch ROLE…` is how `fleet` starts each role."""

from __future__ import annotations

import os
import time
from pathlib import Path

from metier.chaos.clock import CLOCK, stepped

if __name__ == "__main__":
    time.__dict__["time"] = stepped(Path(os.environ[CLOCK]))
    from metier.cli import main

    main()
