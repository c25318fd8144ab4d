"""What users of Tenure test their own parts with: doubles, and the conformance suites that real parts pass, too.

::

    class TestMyLogStore(LogStoreConformance):            # in a test file of yours; pytest or unittest runs it
        def open_store(self, folder):
            return MyLogStore(folder)

Each suite is a class without fixtures and without an import of a test runner: subclass it, say how the part is opened,
and every ``test_`` method is one promise of the protocol. A failed promise is an ``AssertionError`` that names it.
Nothing in ``tenure`` imports this package.
"""

from tenure.testing.damage import flip_bit, torn_copies
from tenure.testing.fence import FenceConformance
from tenure.testing.log_store import LogStoreConformance
from tenure.testing.memory_log_store import MemoryDisk, MemoryLogStore
from tenure.testing.memory_snapshot_store import MemorySnapshotStore
from tenure.testing.memory_transport import MemoryNetwork, MemoryTransport
from tenure.testing.simulation.simulation import Report, Simulation, SimulationFailed
from tenure.testing.snapshot_store import SnapshotStoreConformance
from tenure.testing.state_machine import StateMachineConformance
from tenure.testing.transport import Endpoint, TransportConformance

__all__ = [
    "Endpoint",
    "FenceConformance",
    "LogStoreConformance",
    "MemoryDisk",
    "MemoryLogStore",
    "MemoryNetwork",
    "MemorySnapshotStore",
    "MemoryTransport",
    "Report",
    "Simulation",
    "SimulationFailed",
    "SnapshotStoreConformance",
    "StateMachineConformance",
    "TransportConformance",
    "flip_bit",
    "torn_copies",
]
