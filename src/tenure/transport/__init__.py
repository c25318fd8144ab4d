"""Moves frames between members over TCP, with mutual TLS where there are certificates.

A frame may be lost, repeated or late; none is believed for its bytes alone. Touches sockets and the files of the
certificate, and nothing else. It reads no Raft message: payloads are opaque.
"""

from tenure.transport.frames import FRAME_LIMIT, Frame, FrameError
from tenure.transport.protocol import Identity, Transport, TransportFactory, TransportHooks
from tenure.transport.tcp import TcpTransport
from tenure.transport.tls import Certificates, load_certificates

__all__ = [
    "FRAME_LIMIT",
    "Certificates",
    "Frame",
    "FrameError",
    "Identity",
    "TcpTransport",
    "Transport",
    "TransportFactory",
    "TransportHooks",
    "load_certificates",
]
