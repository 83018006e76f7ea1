"""A client's worker: its session, its links to servers, its services."""
