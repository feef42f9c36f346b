"""The training loop, from captions and images to the best model."""

import copy
import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from modeling_showattend import ShowAttendForConditionalGeneration
from showattend.data.batches import Batch, Epoch, StepDataset, make_items, random_crop
from showattend.data.captions import load_captions
from showattend.data.features import FeatureCache
from showattend.data.pixels import PixelLoader
from showattend.data.streaming import StreamSteps, stream_dataset
from showattend.evaluation.evaluate import caption_images, validation_loss
from showattend.folders import recover, replacing
from showattend.metrics import CiderDReward, CiderMeteorReward, score_captions

from .averaging import between, moving_average
from .distillation import best_captions, generate_captions
from .figures import write_log
from .model import build_model, caption_labels, check_crops, load_for_average
from .objectives import CrossEntropy, Objective, SelfCritical
from .preparation import check_metric, prepare_output_folder, run_identity
from .settings import TrainingSettings

logger = get_logger(__name__)


@dataclass
class Progress:
    """The progress of a run; saved with every checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    total_steps: int = 0
    loss: float = 0.0  # summed over the epoch's steps so far
    best: float | None = None
    epochs_without_improvement: int = 0

    def finished(self, settings: TrainingSettings) -> bool:
        patience = settings.early_stopping_patience or math.inf
        return self.epoch >= settings.epochs or self.epochs_without_improvement >= patience


def train(settings: TrainingSettings) -> Path:
    """Train a captioner, or resume a run that was interrupted.

    Everything goes to `settings.output_dir`: `best/`, the model of the best epoch, which the Auto classes load;
    `checkpoint/`, from which the same command resumes; `log.jsonl` and `curves.png`; `samples/`, captions beside
    their images.

    Returns:
        The folder of the best model.

    Raises:
        ValueError: If the settings do not fit the data, the start or the run to resume.
        OSError: If a folder cannot be written, or a model or data cannot be read.
        FloatingPointError: If the loss is not finite.
    """
    return Trainer(settings).train()


class Trainer:
    """A run: its data, model, optimizer and progress."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.output = Path(settings.output_dir)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # otherwise processes without a GPU would not find each other
            mixed_precision=settings.mixed_precision,
            log_with=None if settings.report_to == "none" else settings.report_to,
            project_dir=self.output,
            # DistributedDataParallel must know that weights that are frozen at first get no gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=settings.freeze_epochs > 0)],
        )
        cores = (os.cpu_count() or 1) // self.accelerator.num_processes
        if self.accelerator.device.type == "cpu" and torch.get_num_threads() == 1 < cores:
            logger.warning("Training uses 1 of %d cores: put OMP_NUM_THREADS=%d before the command.", cores, cores)
        set_seed(settings.seed)
        if self.accelerator.is_main_process:
            prepare_output_folder(self.output, run_identity(settings, self.accelerator.num_processes))
            check_metric(settings.metric_for_best_model)
        self.accelerator.wait_for_everyone()
        recover(self.output / "best")
        self.checkpoint = self.output / "checkpoint"
        self.resumes = recover(self.checkpoint)
        self.progress = Progress()
        if self.resumes:
            self.progress = Progress(**json.loads((self.checkpoint / "progress.json").read_text()))

    def load_data(self) -> None:
        """Load the model, tokenize the captions, and compute the frozen encoder's features of the images."""
        settings = self.settings
        columns: dict[str, Any] = {"image_column": settings.image_column, "caption_column": settings.caption_column}
        if settings.streaming_steps:
            self.stream, validation_set = stream_dataset(settings.dataset, **columns)
            self.load_model(validation_set)
        else:
            with self.accelerator.main_process_first():
                dataset = load_captions(settings.dataset, max_train_samples=settings.max_train_samples, **columns)
            for split in ("train", "validation"):
                if split not in dataset:
                    raise ValueError(f"{settings.dataset} has no {split} split, and training needs one.")
            train_set, validation_set = dataset["train"], dataset["validation"]
            self.load_model(train_set)
            self.load_training(train_set)
        self.load_validation(validation_set)

    def load_model(self, train_set: Dataset) -> None:
        self.model, self.processor = build_model(self.settings, train_set)
        if self.settings.min_crop < 1 and self.settings.feature_cache == "none":
            check_crops(self.model, self.processor)
        self.model.to(self.accelerator.device)
        self.earlier: ShowAttendForConditionalGeneration | None = None
        if self.settings.average_with is not None:
            self.earlier = load_for_average(self.settings.average_with, self.model, self.processor)
        self.images: FeatureCache | PixelLoader = PixelLoader(self.processor.image_processor)
        if self.settings.feature_cache == "disk":
            # float16 overflows with some encoders' activations.
            dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
            cache_dir = Path(self.settings.cache_dir).expanduser()
            self.images = FeatureCache(cache_dir, self.model.encoder, self.processor.image_processor, dtype)

    def load_training(self, train_set: Dataset) -> None:
        settings = self.settings
        train_images = self.images.build(train_set, flipped=settings.flip)
        image_ids = train_set["image_id"]
        self.references = dict(zip(image_ids, train_set["captions"], strict=True))
        captions = self.references
        if settings.generated_captions:
            generated = generate_captions(
                self.model,
                self.processor,
                image_ids,
                self.inputs_of(train_images),
                self.output / "generated.jsonl",
                self.accelerator,
                max_length=settings.max_length,
                seed=settings.seed,
            )
            best = best_captions(generated, self.references, settings.generated_captions)
            captions = {image_id: [*captions[image_id], *best[image_id]] for image_id in image_ids}
        labels = caption_labels(captions.values(), self.processor, settings)
        self.items = make_items(train_images, image_ids, labels, settings.captions_per_image)

    def load_validation(self, validation_set: Dataset) -> None:
        self.validation_set = validation_set
        self.validation_images = self.images.build(validation_set)
        image_ids = validation_set["image_id"]
        self.validation_references = dict(zip(image_ids, validation_set["captions"], strict=True))
        labels = caption_labels(self.validation_references.values(), self.processor, self.settings)
        self.validation_items = make_items(self.validation_images, image_ids, labels, self.settings.captions_per_image)

    def inputs_of(self, keys: list[str]) -> Callable[[Sequence[int]], dict[str, torch.Tensor]]:
        return lambda rows: {self.images.input_name: self.images.get([keys[row] for row in rows])}

    def prepare_training(self) -> None:
        """The optimizer, its schedule, averages of the weights, and the objective."""
        settings, accelerator = self.settings, self.accelerator
        # Convolutions get channels-last inputs: weights in another layout would be converted in every step.
        self.model.encoder.to(memory_format=torch.channels_last)
        encoder_parameters = [parameter for parameter in self.model.encoder.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": list(self.model.decoder.parameters()), "lr": settings.learning_rate},
                {"params": encoder_parameters, "lr": settings.encoder_learning_rate},
            ],
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.on_plateau = settings.lr_scheduler == "reduce_lr_on_plateau"
        plateau = dict(factor=settings.plateau_factor, patience=settings.plateau_patience)
        self.scheduler = get_scheduler(
            settings.lr_scheduler,
            optimizer,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=len(self.steps_of(0)) * settings.epochs,
            scheduler_specific_kwargs=plateau if self.on_plateau else None,
        )
        # Copy before `prepare`, which replaces the model's forward by one bound to this model.
        self.start = copy.deepcopy(self.model) if settings.average_with_start else None
        self.average = moving_average(self.model, settings.ema_decay) if settings.ema_decay else None
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        accelerator.register_for_checkpointing(self.scheduler)
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        accelerator.init_trackers("showattend", config={k: str(v) for k, v in dataclasses.asdict(settings).items()})
        self.objective = self.make_objective()
        if self.resumes:
            accelerator.load_state(str(self.checkpoint))
            logger.info(f"Resuming {self.output} at step {self.progress.step} of epoch {self.progress.epoch + 1}.")

    def make_objective(self) -> Objective:
        settings = self.settings
        if settings.objective == "cross_entropy":
            return CrossEntropy(self.wrapped)
        weight = settings.meteor_weight
        return SelfCritical(
            self.accelerator,
            self.wrapped,
            self.model,
            self.processor,
            CiderMeteorReward(self.references, weight) if weight else CiderDReward(self.references),
            dict(samples=settings.samples_per_image, baseline=settings.baseline, max_length=settings.max_length),
        )

    def steps_of(self, epoch: int, start: int = 0) -> StepDataset | StreamSteps:
        """The steps of an epoch from `start` on, as this process sees them."""
        settings, process = self.settings, self.accelerator.process_index
        order: dict[str, Any] = dict(
            batch_size=settings.batch_size,
            micro_batches=settings.gradient_accumulation_steps,
            processes=self.accelerator.num_processes,
            flip=settings.flip,
            seed=settings.seed,
            epoch=epoch,
        )
        if settings.streaming_steps is None:
            return StepDataset(Epoch(self.items, **order), self.images, process, start)
        return StreamSteps(
            self.stream,
            lambda captions: caption_labels([captions], self.processor, settings)[0],
            self.processor.image_processor,
            settings.streaming_steps,
            settings.captions_per_image,
            process,
            start,
            **order,
        )

    def train(self) -> Path:
        if not self.progress.finished(self.settings):
            self.load_data()
            set_seed(self.settings.seed, device_specific=True)  # from here on, every process has its own random numbers
            self.prepare_training()
        while not self.progress.finished(self.settings):
            self.train_epoch()
            self.keep_best(*self.validate())  # without a name, the average would stay in memory for another epoch
            self.save_checkpoint()
        if self.progress.epoch < self.settings.epochs:
            metric, patience = self.settings.metric_for_best_model, self.settings.early_stopping_patience
            logger.info(f"Stopped: no better {metric} in {patience} epochs.")
        self.accelerator.end_training()
        return self.output / "best"

    def train_epoch(self) -> None:
        """Run the epoch's remaining steps."""
        progress = self.progress
        steps = self.steps_of(progress.epoch, progress.step)
        num_steps = progress.step + len(steps)
        # A separate generator: seeding the workers would advance the one that dropout uses, once more on each resume.
        loader = DataLoader(steps, batch_size=None, num_workers=self.settings.num_workers, generator=torch.Generator())
        self.wrapped.train(self.objective.uses_dropout)
        self.model.encoder.finetuned.requires_grad_(progress.epoch >= self.settings.freeze_epochs)
        with tqdm(
            total=num_steps,
            initial=progress.step,
            desc=f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            disable=not self.accelerator.is_local_main_process,
        ) as bar:
            for batches, num_labels in loader:
                loss = self.train_step(batches, num_labels)
                progress.step += 1
                progress.total_steps += 1
                progress.loss += loss
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"The loss became {loss} in step {progress.step} of epoch {progress.epoch + 1}: a lower "
                        "`learning_rate`, `max_grad_norm` 5 or `mixed_precision` no keep it finite."
                    )
                bar.update()
                bar.set_postfix(loss=f"{progress.loss / progress.step:.3f}")
                if progress.total_steps % self.settings.checkpoint_every == 0 and progress.step < num_steps:
                    self.save_checkpoint()

    def train_step(self, batches: list[Batch], num_labels: int) -> float:
        """Forward and backward passes of all micro-batches, and one step of the optimizer.

        Args:
            num_labels: The number of labels in the step, on all processes.

        Returns:
            The value to log: the loss, or minus the reward.
        """
        accelerator, settings = self.accelerator, self.settings
        logged = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches, start=1):
            for name, images in batch.inputs.items():
                images = images.to(accelerator.device)
                batch.inputs[name] = random_crop(images, settings.min_crop) if settings.min_crop < 1 else images
            batch.labels = batch.labels.to(accelerator.device)
            # Processes exchange gradients once per step, after the last micro-batch.
            last = number == len(batches)
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss, part = self.objective(batch, num_labels, len(batches) * accelerator.num_processes)
                # DistributedDataParallel averages gradients over the processes.
                accelerator.backward(loss * accelerator.num_processes)
            logged += part.to(accelerator.device)
        if settings.max_grad_norm:
            accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.on_plateau:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return accelerator.reduce(logged, "sum").item()

    def validate(self) -> tuple[ShowAttendForConditionalGeneration, dict[str, Any]]:
        """End the epoch: evaluate, log and print its figures, which are the same on all processes.

        Returns:
            The captioner that was judged, and its figures.
        """
        settings, accelerator, progress = self.settings, self.accelerator, self.progress
        figures: dict[str, Any] = {"train_loss": progress.loss / progress.step}
        batch_size = max(settings.batch_size // settings.captions_per_image, 1)
        judged = self.judged()
        with accelerator.autocast():
            figures |= validation_loss(judged, self.validation_items, self.images, accelerator, batch_size)
            captions = caption_images(
                judged,
                self.processor,
                self.validation_set["image_id"],
                self.inputs_of(self.validation_images),
                accelerator,
                num_beams=settings.validation_num_beams,
                max_length=settings.max_length,
            )
        if accelerator.is_main_process:
            figures |= score_captions(captions, self.validation_references)
        figures = broadcast_object_list([figures])[0]
        progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
        figures = {"epoch": progress.epoch, "learning_rate": self.optimizer.param_groups[0]["lr"], **figures}
        if self.on_plateau:
            self.scheduler.step(figures["loss"])
        accelerator.log(figures, step=progress.epoch)
        if accelerator.is_main_process:
            print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
            write_log(self.output, figures, captions, self.validation_set)
        return judged, figures

    def judged(self) -> ShowAttendForConditionalGeneration:
        """The weights that are validated and kept."""
        model = self.model if self.average is None else cast(ShowAttendForConditionalGeneration, self.average.module)
        if self.start is not None:
            model = between(self.start, model, self.settings.average_with_start)
        if self.earlier is not None:
            model = between(self.earlier, model, self.settings.average_with_share)
        return model

    def keep_best(self, judged: ShowAttendForConditionalGeneration, figures: dict[str, Any]) -> None:
        metric, progress = self.settings.metric_for_best_model, self.progress
        score = -figures["loss"] if metric == "loss" else figures[metric]
        if progress.best is None or score > progress.best:
            progress.best, progress.epochs_without_improvement = score, 0
            with replacing(self.output / "best") as folder:
                if self.accelerator.is_main_process:
                    judged.save_pretrained(folder)
                    self.processor.save_pretrained(folder)
        else:
            progress.epochs_without_improvement += 1

    def save_checkpoint(self) -> None:
        with replacing(self.output / "checkpoint") as folder:
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(self.progress)))
