"""``python -m qmux.admin FD NAME``: the admin process, started by the supervisor."""

from __future__ import annotations

import sys

from qmux.admin.role import AdminRole
from qmux.child import run_child


def main() -> int:
    """Run until the supervisor says stop, or is gone."""
    return run_child(int(sys.argv[1]), sys.argv[2], AdminRole)


if __name__ == "__main__":
    sys.exit(main())
