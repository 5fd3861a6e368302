"""What a report refuses."""

from __future__ import annotations

from zoarium._core.errors import ZoariumError


class ReportError(ZoariumError):
    """A chart or report that cannot be made as asked."""
