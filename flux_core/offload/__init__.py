"""Where the parts of a pipeline live while others compute."""

from .policy import OffloadPolicy
from .report import MemoryReport
from .runner import OffloadRunner, Work

__all__ = ["MemoryReport", "OffloadPolicy", "OffloadRunner", "Work"]
