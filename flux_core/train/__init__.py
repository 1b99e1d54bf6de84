"""Training LoRAs on a frozen base of any precision, wherever its weights are."""

from .config import ConfigError, TrainConfig
from .data import TrainingModels
from .history import TrainingEvent
from .settings import read_config
from .trainer import Trained, Trainer

__all__ = [
    "ConfigError",
    "TrainConfig",
    "Trained",
    "Trainer",
    "TrainingEvent",
    "TrainingModels",
    "read_config",
]
