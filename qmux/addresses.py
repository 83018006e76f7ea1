"""``host:port`` as people write and read it: an IPv6 address stands in brackets (RFC 3986 §3.2.2)."""

from __future__ import annotations


def join(host: str, port: int) -> str:
    """``host:port``, or ``[host]:port`` where ``host`` is an IPv6 address, with or without its scope."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(text: str) -> tuple[str, str]:
    """(host without brackets, port) of what ``join`` made; ("", ``text``) where there is no colon."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def text_of(address: object) -> str:
    """A socket's address (``getsockname``, ``accept``) as text: a path for a Unix socket, "" where it has none."""
    if not isinstance(address, tuple):
        return str(address)
    return join(address[0], address[1])
