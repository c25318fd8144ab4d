"""A deterministic simulator of whole clusters: real engines and cores, everything around them made up from one seed.

::

    Simulation(seed=7).run()            # a Report, or SimulationFailed with the seed, the invariant and the trace

See ``docs/internals/simulation.md``. Nothing in ``tenure`` imports it; ``tenure.testing.Simulation`` is its name.
"""
