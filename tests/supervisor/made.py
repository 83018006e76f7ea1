"""Binds for the tests of sockets."""

from __future__ import annotations

from qmux.config.schema import Bind, ListenAddress


def quic(host: str, port: int) -> Bind:
    return Bind("quic", "udp", ListenAddress(host, port))


def datagrams(host: str, port: int) -> Bind:
    return Bind("traffic", "udp", ListenAddress(host, port))


def traffic(host: str, port: int) -> Bind:
    return Bind("traffic", "tcp", ListenAddress(host, port))
