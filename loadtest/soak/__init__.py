"""The soak: mixed traffic through the real daemons for minutes, and what it leaves in them.

``python -m loadtest.soak``. What only grows is a leak: memory, descriptors, threads, streams.
"""
