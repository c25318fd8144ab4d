"""What a member tells a monitoring system: the metrics of one :class:`tenure.types.Status` (G6)."""

from tenure.telemetry.metrics import render_metrics

__all__ = ["render_metrics"]
