"""The worker processes: one event loop each, with the server's or the client's side of the tunnel."""
