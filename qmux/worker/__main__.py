"""``python -m qmux.worker CONTROL_FD NAME``: started by the supervisor, never by hand."""

from __future__ import annotations

import sys

from qmux.child import run_child
from qmux.worker.role import WorkerRole

if __name__ == "__main__":
    sys.exit(run_child(int(sys.argv[1]), sys.argv[2], WorkerRole))
