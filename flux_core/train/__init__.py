"""Training LoRAs on a frozen base of any precision, wherever its weights are."""

from .config import ConfigError, TrainConfig
from .history import TrainingEvent
from .models import TrainingModels
from .settings import read_config
from .trainer import Trainer, TrainingResult

__all__ = [
    "ConfigError",
    "TrainConfig",
    "Trainer",
    "TrainingEvent",
    "TrainingModels",
    "TrainingResult",
    "read_config",
]
