"""Whether an engine takes our certificate and key: tried by ``qmux check``, and before a start or a reload goes on."""

from __future__ import annotations

from qmux.config.schema import TlsFiles
from qmux.errors import CertificateError
from qmux.pki.material import Material
from qmux.pki.reading import ACCEPTED_KEYS
from qmux.quic.engine import Engine


def try_material(engine: Engine, material: Material, files: TlsFiles) -> None:
    """Raises CertificateError with the file's name and what to do where ``engine`` cannot use ``material``."""
    try:
        engine.try_material(material)
    except CertificateError as error:
        place = files.bundle or f"{files.key} for {files.cert}"
        accepted = f"use a certificate with another key ({ACCEPTED_KEYS})"
        raise CertificateError(f"{place}: the {engine.name} engine cannot use it: {error}; {accepted}") from None
