"""What loading a configuration gives: the typed values and the certificate material that its files hold."""

from __future__ import annotations

import msgspec

from qmux.config.schema import Config
from qmux.pki.material import Material


class Loaded(msgspec.Struct, frozen=True):
    """A configuration that was checked as a whole, with its certificate material; ``warnings``: lines for the user."""

    config: Config
    material: Material
    warnings: tuple[str, ...] = ()
