"""The limits of a connection, as the core takes them."""

from __future__ import annotations

import qmux_native

from qmux.quic.engine import ConnectConfig, EndpointConfig

UNREGISTERED_STREAMS = 1
"""Streams that a client may open at a server before ``raise_limits``."""


def of_server(config: EndpointConfig) -> qmux_native.Limits:
    """Of a server's connections until ``raise_limits``."""
    return _limits(config, UNREGISTERED_STREAMS, config.unregistered_window_bytes)


def of_client(config: ConnectConfig) -> qmux_native.Limits:
    """Of one outgoing connection; its window is unlimited, those of its streams are not."""
    return _limits(config, config.max_streams, None)


def _limits(
    config: EndpointConfig | ConnectConfig, max_streams: int, connection_window_bytes: int | None
) -> qmux_native.Limits:
    return qmux_native.Limits(
        idle_timeout_s=config.idle_timeout_s,
        keep_alive_s=config.keep_alive_s,
        handshake_timeout_s=config.handshake_timeout_s,
        max_streams=max_streams,
        stream_window_bytes=config.stream_window_bytes,
        connection_window_bytes=connection_window_bytes,
        datagrams=config.datagrams,
    )
