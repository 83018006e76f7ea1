"""The admin process of a daemon: HTTP on a Unix socket, fed by the bus and the supervisor, in no data path."""
