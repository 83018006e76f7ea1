"""QMux: layer-4 tunnels over QUIC. See docs/architecture.md for the map."""

__version__ = "0.1.0"
