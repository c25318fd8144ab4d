"""The reference application of Tenure: a payment service whose writes the database fences.

It shows how a service uses Tenure, so it uses only Tenure's public names (``tenure``, ``tenure.config``,
``tenure.fence``, ``tenure.telemetry``). Run it by its command, ``payment-service``; importing it does no work.
"""

from __future__ import annotations

__version__ = "0.1.0"
