"""Certificates: making them, reading them, and who they say that a peer is."""
