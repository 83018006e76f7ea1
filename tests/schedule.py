"""Which tests run in the same process, with pytest-xdist: those that share what is expensive to start."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

SHARED = re.compile(r"\[.*(<.+?>)")
"""A parameter in angle brackets names what the test shares with others of its module: ``test_x[<native>-5]``.
(xdist's own marker for groups, ``xdist_group``, does nothing with pytest 9.2: test IDs cannot be changed there.)
"""


class Sharing(LoadScopeScheduling):
    """Tests of one module that share something run one after the other; every other test goes where there is room."""

    def _split_scope(self, nodeid: str) -> str:
        shared = SHARED.search(nodeid)
        return nodeid if shared is None else nodeid.partition("::")[0] + shared[1]
