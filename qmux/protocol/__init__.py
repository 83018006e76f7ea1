"""The client ↔ server protocol, sans-I/O: frames, their encoding, and the state of each side. No sockets, no clock."""
