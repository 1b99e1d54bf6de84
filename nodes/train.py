"""The nodes that train a LoRA."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from flux_core.lora import load_lora
from flux_core.report.pictures import to_pil
from flux_core.sampling.sigmas import SHIFTS
from flux_core.train import ConfigError, TrainConfig, Trainer, TrainingEvent, TrainingModels
from flux_core.train.config import (
    OPTIMIZERS,
    SCHEDULES,
    TIMESTEPS,
    WEIGHTINGS,
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SamplesConfig,
    ValidationConfig,
)
from flux_core.train.plots import times_histogram
from flux_core.train.state import checkpoints_of, read_run

from . import accounts, host
from .dataset import Dataset
from .memory_manager import HostOffloadRunner
from .running_text import RunningText
from .training_files import RUNS, publish, within_folders
from .vae import HostVAE
from .widgets import ADVANCED, STEADY, choice, free_number, integer, socket, text, toggle
from .wires import (
    FLUX_DATASET,
    FLUX_MODEL,
    FLUX_TEXT_ENCODERS,
    FLUX_TRAIN_SETTINGS,
    TRAINING,
    FluxModel,
    FluxTextEncoders,
)

#: What a person chooses from, and the targets that it means.
LAYERS = {
    "attention and mlp": ("attention", "mlp"),
    "attention": ("attention",),
    "all of the blocks": ("attention", "mlp", "modulation"),
}


class FluxFitTrainSettings:
    """How a LoRA is trained."""

    DESCRIPTION = (
        "How a LoRA is trained: its size, how long, how fast, at which noise levels. The picture "
        "shows how often each noise level is drawn."
    )
    CATEGORY = TRAINING
    FUNCTION = "make"
    SEARCH_ALIASES = ["training config", "hyperparameters"]
    RETURN_TYPES = (FLUX_TRAIN_SETTINGS, "IMAGE")
    RETURN_NAMES = ("settings", "timesteps")
    OUTPUT_TOOLTIPS = ("For FluxFitTrainLora.", "Which noise levels are drawn how often.")

    # long: a table of inputs
    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "steps": integer(1000, 1, 1_000_000, "Updates in all."),
                "batch": integer(1, 1, 256, "Pictures a step."),
                "rank": integer(16, 1, 512, "Size of the LoRA."),
                "layers": choice(LAYERS, "Which layers it is beside.", default="attention and mlp"),
                "learning_rate": free_number(1e-4, 0.0, 10.0, 1e-6, "1e-4 is usual for adamw."),
                "timesteps": choice(TIMESTEPS, "How noise levels are drawn.", default="sigmoid"),
                "seed": integer(0, 0, 2**53, "The same seed trains the same LoRA.", **STEADY),
            },
            "optional": {
                "alpha": free_number(0.0, 0.0, 4096.0, 0.5, "Strength; 0 is the rank.", **ADVANCED),
                "shift": free_number(
                    3.0,
                    0.01,
                    100.0,
                    0.01,
                    "For timesteps = shift: more than 1 is more noise.",
                    **ADVANCED,
                ),
                "weighting": choice(
                    WEIGHTINGS, "How much each noise level counts.", default="none", **ADVANCED
                ),
                "guidance": free_number(
                    1.0, 0.0, 100.0, 0.1, "What FLUX.1 dev is told while it learns.", **ADVANCED
                ),
                "caption_dropout": free_number(
                    0.0, 0.0, 1.0, 0.01, "Share of pictures learned without caption.", **ADVANCED
                ),
                "optimizer": choice(
                    OPTIMIZERS, "adamw needs no package.", default="adamw", **ADVANCED
                ),
                "weight_decay": free_number(
                    0.01, 0.0, 10.0, 1e-4, "Pulls weights to 0.", **ADVANCED
                ),
                "schedule": choice(
                    SCHEDULES, "Of the learning rate.", default="constant", **ADVANCED
                ),
                "warmup": integer(0, 0, 100_000, "Steps to the full learning rate.", **ADVANCED),
                "accumulation": integer(1, 1, 1024, "Batches a step.", **ADVANCED),
                "clip": free_number(
                    1.0, 0.0, 1000.0, 0.1, "Largest norm of gradients.", **ADVANCED
                ),
                "ema": free_number(
                    0.0,
                    0.0,
                    0.9999,
                    1e-4,
                    "Decay of a running mean, which is what is written; 0 is none.",
                    **ADVANCED,
                ),
                "save_every": integer(250, 0, 100_000, "Steps between checkpoints.", **ADVANCED),
                "validate_every": integer(
                    0,
                    0,
                    100_000,
                    "Steps between losses at fixed noise on a tenth of the "
                    "pictures, which is then not trained on; 0 is never.",
                    **ADVANCED,
                ),
                "activations_on_host": toggle(
                    False,
                    "Keeps what the backward pass needs in host "
                    "memory: less of the card for a little time.",
                    advanced=True,
                ),
            },
        }

    def make(
        self,
        steps: int,
        batch: int,
        rank: int,
        layers: str,
        learning_rate: float,
        timesteps: str,
        seed: int,
        alpha: float = 0.0,
        shift: float = 3.0,
        weighting: str = "none",
        guidance: float = 1.0,
        caption_dropout: float = 0.0,
        optimizer: str = "adamw",
        weight_decay: float = 0.01,
        schedule: str = "constant",
        warmup: int = 0,
        accumulation: int = 1,
        clip: float = 1.0,
        ema: float = 0.0,
        save_every: int = 250,
        validate_every: int = 0,
        activations_on_host: bool = False,
    ):
        objective = ObjectiveConfig(
            timesteps,
            shift=shift,
            weighting=weighting,
            guidance=guidance,
            caption_dropout=caption_dropout,
        )
        settings = Settings(
            steps,
            batch,
            seed,
            save_every,
            LoraConfig(rank, alpha, LAYERS[layers], ema=ema),
            objective,
            OptimizerConfig(
                optimizer,
                learning_rate,
                weight_decay,
                schedule=schedule,
                warmup=warmup,
                accumulation=accumulation,
                clip=clip,
            ),
            ValidationConfig(every=validate_every),
            activations_on_host,
        )
        return (settings, times_histogram(objective)[None])


@dataclass(frozen=True)
class Settings:
    """``TrainConfig`` but for the data, the models and the name."""

    steps: int
    batch: int
    seed: int
    save_every: int
    lora: LoraConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    validation: ValidationConfig
    activations_on_host: bool


TRAINED = (FLUX_MODEL, "IMAGE", "IMAGE", "STRING")
TRAINED_NAMES = ("model", "loss", "samples", "path")
TRAINED_TOOLTIPS = (
    "The model with the new LoRA on it.",
    "The loss over the steps.",
    "The last sample pictures.",
    "The LoRA's file, in models of the output folder: FluxFitLoraLoader and LoraLoader list it.",
)
PARTS = {
    "model": socket(FLUX_MODEL, "The base, of any precision but fp16; stays as it is."),
    "text_encoders": socket(
        FLUX_TEXT_ENCODERS, "From FluxLoaderFP8, or FluxFitTextEncoderLoader for FLUX.2."
    ),
    "vae": socket("VAE", "From FluxLoaderFP8, or FluxFitVAELoader for FLUX.2."),
}


class FluxFitTrainLora:
    """Trains a LoRA."""

    DESCRIPTION = (
        "Trains a LoRA beside the frozen weights of FLUX.1, FLUX.2 or Chroma, of any precision and "
        "under any offload policy. Shows samples while it runs. Cancelled, it keeps a checkpoint, "
        "and goes on from there when it is queued again."
    )
    CATEGORY = TRAINING
    FUNCTION = "train"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["lora training", "fine-tune", "dreambooth"]
    RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS = TRAINED, TRAINED_NAMES, TRAINED_TOOLTIPS

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": PARTS
            | {
                "dataset": socket(FLUX_DATASET, "From FluxFitDataset."),
                "settings": socket(FLUX_TRAIN_SETTINGS, "From FluxFitTrainSettings."),
                "name": text("my_lora", "Of the run, in output/training, and of the LoRA."),
                "existing": choice(
                    ("resume", "refuse"),
                    "Where a run of this name exists: go on with it (it must have the same "
                    "settings), or refuse.",
                    default="resume",
                ),
                "sample_prompts": text(
                    "",
                    "One a line: drawn at the beginning, between and at the end.",
                    multiline=True,
                ),
                "sample_every": integer(
                    250, 0, 100_000, "Steps between samples; 0 is only at the end."
                ),
            },
            "optional": {
                "sample_steps": integer(20, 1, 1000, "Of the sampler.", **ADVANCED),
                "sample_cfg": free_number(1.0, 0.0, 30.0, 0.1, "1 for FLUX.1 dev.", **ADVANCED),
                "sample_shift": choice(SHIFTS, "As in FluxSampler.", default="host", **ADVANCED),
            },
        }

    def train(
        self,
        model: FluxModel,
        text_encoders: FluxTextEncoders,
        vae: HostVAE,
        dataset: Dataset,
        settings: Settings,
        name: str,
        existing: str,
        sample_prompts: str,
        sample_every: int,
        sample_steps: int = 20,
        sample_cfg: float = 1.0,
        sample_shift: str = "host",
    ):
        side = dataset.folders[0].resolutions[0]
        side -= side % 16  # what a picture's side may be
        samples = SamplesConfig(
            tuple(line.strip() for line in sample_prompts.splitlines() if line.strip()),
            sample_every,
            side,
            side,
            sample_steps,
            sample_cfg,
            seed=settings.seed,
            shift=sample_shift,
        )
        config = TrainConfig(
            name=name,
            output=str(host.output_folder().resolve() / RUNS),
            steps=settings.steps,
            batch=settings.batch,
            seed=settings.seed,
            save_every=settings.save_every,
            cache=str(host.output_folder().resolve() / RUNS / ".cache"),
            lora=settings.lora,
            data=dataset.folders,
            objective=settings.objective,
            optimizer=settings.optimizer,
            samples=samples,
            validation=settings.validation,
        )
        offload = replace(config.offload, activations_on_host=settings.activations_on_host)
        config = replace(config, offload=offload)
        resume = existing == "resume" and bool(checkpoints_of(config.folder))
        return trained_with(config, model, text_encoders, vae, resume)


class FluxFitResumeTraining:
    """Goes on with a run."""

    DESCRIPTION = (
        "Goes on with a run of output/training, from its last checkpoint and with its settings, to "
        "as many steps as are asked for. The models must be those that it began with."
    )
    CATEGORY = TRAINING
    FUNCTION = "resume"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["continue training"]
    RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS = TRAINED, TRAINED_NAMES, TRAINED_TOOLTIPS

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": PARTS
            | {
                "run": choice(run_names(), "A folder of output/training."),
                "steps": integer(0, 0, 1_000_000, "Updates in all; 0 is as many as it began with."),
            }
        }

    def resume(
        self, model: FluxModel, text_encoders: FluxTextEncoders, vae: HostVAE, run: str, steps: int
    ):
        runs_folder = host.output_folder().resolve() / RUNS
        config = within_folders(read_run(host.inside(runs_folder, run)), run, runs_folder)
        config = replace(config, steps=steps or config.steps)
        return trained_with(config, model, text_encoders, vae, True)


def run_names() -> list[str]:
    runs_folder = host.output_folder() / RUNS
    return sorted(path.parent.name for path in runs_folder.glob("*/config.json"))


def trained_with(
    config: TrainConfig,
    model: FluxModel,
    text_encoders: FluxTextEncoders,
    vae: HostVAE,
    resume: bool,
) -> dict:
    """Train, show it, and give the model with its new LoRA."""
    if not isinstance(vae, HostVAE):
        raise ConfigError("training needs the VAE of a FluxFit loader, this one is another's")
    if model.loras:
        raise ConfigError(
            "there are LoRAs on this model: training begins at the base; wire it from the loader"
        )
    if model.adapters:
        raise ConfigError(
            "there are IP-Adapters on this model, which training does not see: wire it from the "
            "loader"
        )
    parts = TrainingModels(model.transformer, text_encoders.encoders, vae.first_stage_model)
    runner = HostOffloadRunner(model.policy, host.device())
    text = RunningText()
    with host.stages() as show:

        def tell(event: TrainingEvent) -> None:
            shown = to_pil(torch.cat(event.pictures, dim=1)) if event.pictures else None
            text(f"{event}, {event.done} of {event.all}")
            show(str(event), event.done, event.all, shown)

        trained = Trainer(config, parts, host.device(), runner=runner, on_event=tell).run(resume)
    accounts.account(runner.report)
    path = publish(trained.files[0])
    loss = trained.history.curve()
    samples = torch.stack(trained.samples) if trained.samples else torch.zeros(1, 64, 64, 3)
    with_lora = replace(model, loras=((load_lora(path), 1.0),))
    summary = f"{path}\n{config.steps} steps, last loss {trained.history.losses[-1]:.4f}"
    return {"ui": {"text": (summary,)}, "result": (with_lora, loss[None], samples, str(path))}
