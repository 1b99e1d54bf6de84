"""Where the parts of a pipeline live while others compute."""

from .policy import OffloadPolicy
from .report import MemoryReport
from .residency import Residency, Work

__all__ = ["MemoryReport", "OffloadPolicy", "Residency", "Work"]
