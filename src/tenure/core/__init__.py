"""The pure core: no clock, disk, socket, random number, thread or event loop in it.

Events go in with the instant at which they happened, effects come out as data (``effects.py``); the driver in
``tenure.node`` runs them. The simulator runs the same core against virtual time.
"""
