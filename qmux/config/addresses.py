"""Addresses as a user writes them: binds, targets, servers, networks. Parsers raise AddressError with what to write."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from qmux.config.schema import ListenAddress, ServerAddress, Target

DEFAULT_SERVER_PORT = 8443
"""Where a server listens for clients if nothing says otherwise (``[quic] bind``)."""

MAX_UNIX_PATH_BYTES = 107
"""``sun_path`` of Linux is 108 bytes with the closing NUL (unix(7))."""

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")
_PORT = re.compile(r"[0-9]{1,5}")


class AddressError(ValueError):
    """An address that cannot be used: what is wrong and what to write."""


def parse_bind(value: str) -> ListenAddress:
    """``":80"``, ``"192.0.2.1:80"``, ``"[::1]:80"``. Names are refused: which of their addresses would be meant?"""
    if _PORT.fullmatch(value):
        raise AddressError(f'a bind is an address and a port; did you mean ":{value}"?')
    host, port_text = _split(value, "a bind is an address and a port", ":80")
    port = _port(port_text)
    if host == "":
        return ListenAddress("", port)
    if host == "*":
        raise AddressError(f'every address is written as an empty one; did you mean ":{port}"?')
    address = _ip(host)
    if address is None:
        hint = f'; did you mean "127.0.0.1:{port}"?' if host == "localhost" else f'; every address is ":{port}"'
        raise AddressError(f"a bind takes an IP address, not a name{hint}")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise AddressError(f'an IPv4 address in IPv6 form; did you mean "{address.ipv4_mapped}:{port}"?')
    return ListenAddress(str(address), port)


def parse_target(value: str, base: Path) -> Target:
    """``"127.0.0.1:3000"``, ``"app.default.svc:3000"``, ``"[::1]:3000"``, ``"unix:/run/app.sock"``."""
    if value.startswith("unix:"):
        return Target(path=_unix_path(value.removeprefix("unix:"), base))
    if _PORT.fullmatch(value):
        raise AddressError(f'a target is a host and a port; did you mean "127.0.0.1:{value}"?')
    if value.startswith("/"):
        raise AddressError(f'a Unix socket is written with "unix:"; did you mean "unix:{value}"?')
    host, port_text = _split(value, "a target is a host and a port, or unix:/path", "127.0.0.1:3000")
    if host == "":
        raise AddressError(f'a target needs a host; did you mean "127.0.0.1:{port_text}"?')
    return Target(_host(host), _port(port_text))


def parse_server(value: str) -> ServerAddress:
    """``"tunnel.example.com:8443"``; without a port it is 8443."""
    address = _ip(value)
    if _PORT.fullmatch(value):
        raise AddressError('a server is a host and a port, as in "tunnel.example.com:8443"')
    if isinstance(address, ipaddress.IPv6Address):
        raise AddressError(f'an IPv6 address stands in brackets; did you mean "[{value}]:{DEFAULT_SERVER_PORT}"?')
    if value.startswith("[") and value.endswith("]"):
        value = f"{value}:{DEFAULT_SERVER_PORT}"
    elif ":" not in value and value:
        return ServerAddress(_host(value), DEFAULT_SERVER_PORT)
    host, port_text = _split(value, "a server is a host and a port", "tunnel.example.com:8443")
    if host == "":
        raise AddressError('a server needs a host, as in "tunnel.example.com:8443"')
    return ServerAddress(_host(host), _port(port_text))


def parse_network(value: str) -> str:
    """A CIDR or a single address, as ``ipaddress`` prints it. Set host bits are refused: they hide a mistake."""
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise AddressError('not a network; write it as in "10.0.0.0/8" or "2001:db8::/32"') from None
    raise AddressError(f'the address has bits beyond its prefix; did you mean "{network}"?')


def check_host(value: str) -> str:
    """A DNS name or IP address without port."""
    return _host(value)


def _split(value: str, rule: str, example: str) -> tuple[str, str]:
    if "://" in value:
        rest = value.partition("://")[2].rstrip("/")
        raise AddressError(f'{rule}, not a URL; did you mean "{rest}"?')
    if value.startswith("["):
        host, bracket, port = value[1:].partition("]")
        if not bracket or not port.startswith(":") or ":" not in host:
            raise AddressError(f'{rule}; an IPv6 address is written as in "[::1]:{example.rpartition(":")[2]}"')
        return host, port[1:]
    host, colon, port = value.rpartition(":")
    if not colon:
        raise AddressError(f'{rule}, as in "{example}"')
    if ":" in host:
        raise AddressError(f'an IPv6 address stands in brackets; did you mean "[{host}]:{port}"?')
    return host, port


def _port(text: str) -> int:
    if not _PORT.fullmatch(text):
        raise AddressError(f'"{text}" is not a port; a port is a number from 1 to 65535')
    if not 1 <= int(text) <= 65_535:
        raise AddressError(f"port {text} is out of range; a port is a number from 1 to 65535")
    return int(text)


def _host(host: str) -> str:
    address = _ip(host)
    if address is not None:
        return str(address)
    if re.fullmatch(r"[0-9.]+", host):
        raise AddressError(f'"{host}" is not an IP address')
    if not _HOST.fullmatch(host):
        raise AddressError(f'"{host}" is neither a host name nor an IP address')
    return host


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _unix_path(text: str, base: Path) -> str:
    if not text or text.startswith("@") or "\0" in text:
        raise AddressError('a Unix socket is a path, as in "unix:/run/app.sock"')
    path = str((base / text).absolute())
    check_unix_path(path)
    return path


def check_unix_path(path: str) -> None:
    """Raise AddressError where the kernel cannot bind or connect to ``path``."""
    if (length := len(os.fsencode(path))) > MAX_UNIX_PATH_BYTES:
        raise AddressError(
            f"the path has {length} bytes; a Unix socket's has at most {MAX_UNIX_PATH_BYTES}: use a shorter one"
        )
