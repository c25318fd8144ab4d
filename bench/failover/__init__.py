"""How long nobody leads after a death, a pause or a cut, beside the peers (README.md)."""
