"""Where the parts of a pipeline live while others compute."""

from .policy import OffloadPolicy
from .residency import MemoryReport, Residency

__all__ = ["MemoryReport", "OffloadPolicy", "Residency"]
