"""Scenarios as text over the virtual cluster: what is done, and what it showed. See docs/internals/datadriven.md."""
