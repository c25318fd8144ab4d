"""Moves frames between members over TCP. A frame may be lost, repeated or late; none is believed for its bytes alone.

Touches sockets, and nothing else. It reads no Raft message: payloads are opaque.
"""

from tenure.transport.frames import FRAME_LIMIT, Frame, FrameError
from tenure.transport.protocol import Transport
from tenure.transport.tcp import TcpTransport

__all__ = ["FRAME_LIMIT", "Frame", "FrameError", "TcpTransport", "Transport"]
