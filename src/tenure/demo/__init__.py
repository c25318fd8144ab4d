"""The demonstration: an embedded PostgreSQL, payment nodes as real processes, clients and faults."""
