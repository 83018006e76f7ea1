"""Addresses and host names as people write and read them: the one grammar for configuration, TLS and ``qmux pki``.

``host:port``: an IPv6 address stands in brackets (RFC 3986 §3.2.2). A host is an IP address (IPv6 with or without its
scope, RFC 4007 §11) or a DNS name: ASCII, or of any script (IDNA 2008), with or without the dot that makes it absolute.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TypeAlias

MAX_NAME = 253
"""Characters of a DNS name without its last dot (RFC 1035 §2.3.4)."""

IpAddress: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class AddressError(ValueError):
    """An address that cannot be used: what is wrong and what to write."""


def ip(text: str) -> IpAddress | None:
    """The IP address that ``text`` is; None where it is none. An IPv4 address in IPv6 form is that IPv4 address: the
    kernel sends it over IPv4, and certificates name it so.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def host(text: str) -> str:
    """An IP address or DNS name as it is dialled: the address as ``ipaddress`` prints it, the name in lower case, in
    ASCII, its last dot kept (it then is no name to complete with a search domain). Raises AddressError.
    """
    if (address := ip(text)) is not None:
        return str(address)
    name = _ascii(text)
    absolute = name.removesuffix(".")
    if _NUMBER.fullmatch(absolute.rpartition(".")[2]):  # the system would take 127.1 and 0x7f.1 for addresses
        raise AddressError(f'"{text}" is not an IP address')
    if len(absolute) > MAX_NAME or not _NAME.fullmatch(absolute):
        raise AddressError(f'"{text}" is neither a host name nor an IP address')
    return name


def certified(text: str) -> str:
    """What a certificate names a host by, and what a client asks it for: an address without scope, a name without its
    last dot. Raises AddressError, also for a name with an underscore, which is none of a certificate (RFC 5280
    §4.2.1.6).
    """
    name = host(text)
    if ip(name) is not None:
        return name.partition("%")[0]
    name = name.removesuffix(".")
    if "_" in name:
        raise AddressError(f'"{text}" has an underscore, so no certificate can be for it')
    return name


def socket_address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """A numeric address for bind and connect, which want the scope of an IPv6 address as a number. Raises OSError where
    this machine has no such interface.
    """
    address, percent, scope = host.partition("%")
    if not percent:
        return host, port
    return address, port, 0, int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)


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


def _ascii(text: str) -> str:
    """A name of any script as DNS has it. Raises AddressError."""
    if text.isascii():
        return text.lower()
    import idna  # only for names that need it

    try:
        return idna.encode(text, uts46=True).decode()
    except idna.IDNAError as error:
        raise AddressError(f'"{text}" is not a host name: {error}') from None
