"""The Raft benchmark: three real processes with a durable log on loopback, ours beside its peers in the same rounds."""
