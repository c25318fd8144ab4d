"""Runs the pure core against the real world: a thread, an event loop, the disk, sockets, clocks, the fence."""
