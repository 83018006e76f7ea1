"""A server's worker: its endpoint, its clients, its users."""
