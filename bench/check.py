"""What ``leadership.check()`` and ``leadership.remaining()`` cost: they stand before every write (R14).

    make bench-check

Prints nanoseconds a call, the best of many rounds, beside what reading the two clocks costs, and the memory that a
thousand calls leave behind.
"""

from __future__ import annotations

import asyncio
import timeit
import tracemalloc
from collections.abc import Callable

from tenure import Credential, HeldLeadership
from tenure.instants import NS_PER_SECOND, LeaseSpan
from tenure.node.clocks import boottime_ns, raw_ns, read_clocks

CALLS, ROUNDS = 100_000, 15


def nanoseconds(call: Callable[[], object]) -> float:
    """The best round's cost of one call."""
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e9


def kept_bytes(call: Callable[[], object]) -> int:
    """What a thousand calls leave allocated."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(1000):
        call()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before


async def main() -> None:
    """Measure a leadership whose lease lasts for the whole run."""
    leadership = HeldLeadership(
        term=1,
        credential=Credential(token=1, nonce="none"),
        span=LeaseSpan(read_clocks(), 3600 * NS_PER_SECOND),
        margin_ns=0,
        clocks=(raw_ns, boottime_ns),
        loop=asyncio.get_running_loop(),
        on_exit=lambda: None,
        on_loss=lambda reason: None,
    )
    rows: list[tuple[str, Callable[[], object]]] = [
        ("check()", leadership.check),
        ("remaining()", leadership.remaining),
        ("one clock", raw_ns),
        ("the other", boottime_ns),
    ]
    for name, call in rows:
        print(f"{name:<14}{nanoseconds(call):7.0f} ns   {kept_bytes(call)} bytes kept")
    leadership.abandon()


if __name__ == "__main__":
    asyncio.run(main())
