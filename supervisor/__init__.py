"""Which processes exist: the supervisor owns every socket, the process table and the runtime directory of one daemon.

It moves no user byte and imports neither an engine nor uvloop. Start with ``supervisor.run``; ``supervisor.master`` is
the loop. docs/architecture.md, "Processes" and "Lifecycle", is the contract.
"""

from __future__ import annotations

IS_QMUX = True
"""Another project (Supervisor/supervisor) installs a package of this name too: ``qmux.cli`` looks for this mark."""
