"""Training LoRAs on a frozen base of any precision, wherever its weights are."""

from .config import ConfigError, TrainConfig
from .data import Parts
from .history import News
from .settings import read_config
from .trainer import Trained, Trainer

__all__ = ["ConfigError", "News", "Parts", "TrainConfig", "Trained", "Trainer", "read_config"]
