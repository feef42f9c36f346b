"""The training loop, from captions and photos to the best model, in the order in which it happens."""

import copy
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BertTokenizer, get_scheduler

from modeling_showattend.configuration_showattend import ShowAttendConfig
from modeling_showattend.image_processing_showattend import ShowAttendImageProcessor, load_image
from modeling_showattend.metrics import CiderDReward, CiderMeteorReward, score_captions
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor
from showattend.checkpoints import load_captioner
from showattend.data.batches import Epoch, StepDataset, make_items, random_crop
from showattend.data.captions import load_captions
from showattend.data.features import FeatureCache
from showattend.data.tokenization import load_tokenizer, prune_tokenizer
from showattend.evaluation.evaluate import caption_photos, validation_loss
from showattend.folders import recover, replacing

from .distillation import distilled_captions
from .figures import plot_curves, plot_samples
from .self_critical import policy_gradient_loss, sample_captions
from .settings import Recipe

logger = get_logger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    total_steps: int = 0
    loss: float = 0.0  # summed over the epoch's steps so far
    best: float | None = None
    epochs_without_improvement: int = 0


def train(recipe: Recipe) -> Path:
    """Train a captioner, or go on with a run that was interrupted.

    Everything goes to `recipe.output_dir`: `best/`, the model of the best epoch, which the Auto classes load;
    `checkpoint/`, from which the same command goes on; `log.jsonl` and `curves.png`; `samples/`, captions beside
    their photos.

    Returns:
        The folder of the best model.

    Raises:
        ValueError: If the recipe does not fit the data, the checkpoint or the run that is to go on.
        OSError: If a folder cannot be written, or a model or data cannot be read.
    """
    output = Path(recipe.output_dir)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or processes without a GPU would not know of each other
        mixed_precision=recipe.mixed_precision,
        log_with=None if recipe.report_to == "none" else recipe.report_to,
        project_dir=output,
    )
    set_seed(recipe.seed)
    # A step is counted in batches of all processes: their number belongs to a run.
    run = dataclasses.asdict(recipe) | {"num_processes": accelerator.num_processes}
    if accelerator.is_main_process:
        check_output_folder(output, run)
        check_metric(recipe.metric)
    accelerator.wait_for_everyone()

    # 1. Data: photos with their captions, as word pieces.
    with accelerator.main_process_first():
        dataset = load_captions(recipe.dataset, max_train_samples=recipe.max_train_samples, seed=recipe.seed)
    for split in ("train", "validation"):
        if split not in dataset:
            raise ValueError(f"{recipe.dataset} has no {split} split, and training needs one.")
    train_set, validation_set = dataset["train"], dataset["validation"]
    model, processor = build_model(recipe, train_set)
    train_captions = train_set["captions"]
    captions_of_photo = dict(zip(train_set["image_id"], train_captions, strict=True))
    if recipe.teacher_captions:
        distilled = distilled_captions(captions_of_photo, recipe.teacher_captions)
        train_captions = [distilled[image_id] for image_id in train_set["image_id"]]
    train_labels = caption_labels(train_captions, processor, recipe)
    references = {row["image_id"]: row["captions"] for row in validation_set.select_columns(["image_id", "captions"])}

    # 2. Features of the frozen encoder, computed once.
    model.to(accelerator.device)
    # float16 has not the range for every encoder's activations.
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    cache = FeatureCache(Path(recipe.cache_dir).expanduser(), model.encoder, processor.image_processor, dtype)
    train_photos = cache.build(train_set, flipped=recipe.flip)
    validation_photos = cache.build(validation_set)
    validation_labels = caption_labels(validation_set["captions"], processor, recipe)
    together = recipe.captions_per_photo
    items = make_items(train_photos, train_set["image_id"], train_labels, together)
    validation_items = make_items(validation_photos, validation_set["image_id"], validation_labels, together)
    reward = None
    if recipe.objective == "self_critical":
        weight = recipe.meteor_weight
        reward = CiderMeteorReward(captions_of_photo, weight) if weight else CiderDReward(captions_of_photo)

    set_seed(recipe.seed, device_specific=True)  # from here on, each process draws for itself

    # 3. Optimizer, schedule and the state of an earlier run.
    encoder_parameters = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(model.decoder.parameters()), "lr": recipe.learning_rate},
            {"params": encoder_parameters, "lr": recipe.encoder_learning_rate},
        ],
        weight_decay=recipe.weight_decay,
        fused=True,
    )

    def order_of(epoch: int) -> Epoch:
        return Epoch(
            items,
            recipe.batch_size,
            micro_batches=recipe.gradient_accumulation_steps,
            processes=accelerator.num_processes,
            flip=recipe.flip,
            seed=recipe.seed,
            epoch=epoch,
        )

    on_plateau = recipe.lr_scheduler == "reduce_lr_on_plateau"
    scheduler = get_scheduler(
        recipe.lr_scheduler,
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=len(order_of(0)) * recipe.epochs,
        scheduler_specific_kwargs=(
            dict(factor=recipe.plateau_factor, patience=recipe.plateau_patience) if on_plateau else None
        ),
    )
    averaged = copy.deepcopy(model) if recipe.average_decay else None
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    if averaged is not None:
        accelerator.register_for_checkpointing(averaged)
    accelerator.init_trackers("showattend", config={k: str(v) for k, v in dataclasses.asdict(recipe).items()})
    progress = Progress()
    checkpoint = output / "checkpoint"
    if recover(checkpoint):
        accelerator.load_state(str(checkpoint))
        progress = Progress(**json.loads((checkpoint / "progress.json").read_text()))
        logger.info(f"Going on with {output} at step {progress.step} of epoch {progress.epoch + 1}.")
    recover(output / "best")
    if accelerator.is_main_process:
        (output / "recipe.json").write_text(json.dumps(run, indent=2) + "\n")

    def save_checkpoint() -> None:
        with replacing(checkpoint) as folder:
            accelerator.save_state(str(folder))
            if accelerator.is_main_process:
                (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)))

    # 4. Epochs.
    patience = recipe.early_stopping_patience or math.inf
    while progress.epoch < recipe.epochs and progress.epochs_without_improvement < patience:
        order = order_of(progress.epoch)
        steps = StepDataset(order, cache, accelerator.process_index, start=progress.step)
        # A generator of its own: workers would take their seed from dropout's, once more when a run goes on.
        loader = DataLoader(steps, batch_size=None, num_workers=recipe.num_workers, generator=torch.Generator())
        bar = tqdm(
            total=len(order),
            initial=progress.step,
            desc=f"epoch {progress.epoch + 1}/{recipe.epochs}",
            disable=not accelerator.is_local_main_process,
        )
        # A sampled caption's gradient must be that of the distribution it was drawn from, which knows no dropout.
        wrapped.train(reward is None)
        for batches, labels in loader:
            step_loss = torch.zeros((), device=accelerator.device)
            for number, batch in enumerate(batches, start=1):
                if recipe.min_crop < 1:
                    batch.image_features = random_crop(batch.image_features, recipe.min_crop)
                image_features = batch.image_features.to(accelerator.device)
                if reward is None:
                    targets = batch.labels.to(accelerator.device)
                else:
                    targets, advantages, mean_reward = sample_captions(
                        model, processor, batch, reward, recipe.samples_per_photo, recipe.baseline, recipe.max_length
                    )
                # Processes and micro-batches exchange gradients once a step, after the last micro-batch.
                last = number == len(batches)
                with torch.enable_grad() if last else accelerator.no_sync(wrapped):
                    with accelerator.autocast():
                        if reward is None:
                            # The sum over this batch by the labels of all of them: the parts add up to the mean.
                            loss = wrapped(
                                image_features=image_features,
                                labels=targets,
                                num_items_in_batch=labels,
                                skip_logits=True,
                            ).loss
                        else:
                            inputs = model.prepare_decoder_input_ids_from_labels(targets)
                            logits = wrapped(
                                image_features=image_features, decoder_input_ids=inputs, use_cache=False
                            ).logits
                            pieces = (targets != -100).sum() * len(batches) * accelerator.num_processes
                            loss = policy_gradient_loss(logits, targets, advantages) / pieces
                    accelerator.backward(loss * accelerator.num_processes)  # whose mean is taken over the processes
                shown = loss.detach() if reward is None else torch.tensor(-mean_reward) / len(batches)
                step_loss += shown.to(step_loss.device)
            if recipe.max_grad_norm:
                accelerator.clip_grad_norm_(wrapped.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if not on_plateau:
                scheduler.step()
            if averaged is not None:
                # The beginning weighs less: an average of the first steps would drag the initial weights along.
                steps_so_far = progress.total_steps + 1
                move_average(averaged, model, min(recipe.average_decay, steps_so_far / (steps_so_far + 10)))

            step_loss = accelerator.reduce(step_loss, "sum" if reward is None else "mean").item()
            progress.step += 1
            progress.total_steps += 1
            progress.loss += step_loss
            if not math.isfinite(step_loss):
                raise FloatingPointError(
                    f"The loss became {step_loss} in step {progress.step} of epoch {progress.epoch + 1}: a lower "
                    "--learning-rate, --max-grad-norm 5 or --mixed-precision no keep it finite."
                )
            bar.update()
            bar.set_postfix(loss=f"{progress.loss / progress.step:.3f}")
            if progress.total_steps % recipe.checkpoint_every == 0 and progress.step < len(order):
                save_checkpoint()
        bar.close()

        # 5. Validation.
        judged = model if averaged is None else averaged
        figures: dict[str, Any] = {"train_loss": progress.loss / len(order)}
        figures |= validation_loss(judged, validation_items, cache, accelerator, max(recipe.batch_size // together, 1))
        captions = caption_photos(
            judged,
            processor,
            validation_set["image_id"],
            lambda rows: {"image_features": cache.get([validation_photos[row] for row in rows])},
            accelerator,
            num_beams=recipe.validation_num_beams,
            max_length=recipe.max_length,
        )
        if accelerator.is_main_process:
            figures |= score_captions(captions, references)
        figures = broadcast_object_list([figures])[0]  # all must agree on the best epoch and on the end
        progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
        figures = {"epoch": progress.epoch, "learning_rate": optimizer.param_groups[0]["lr"], **figures}
        if on_plateau:
            scheduler.step(figures["loss"])
        accelerator.log(figures, step=progress.epoch)
        if accelerator.is_main_process:
            print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
            write_log(output, figures, captions, validation_set)

        # 6. Keep the best model; stop when nothing improves.
        score = -figures["loss"] if recipe.metric == "loss" else figures[recipe.metric]
        if progress.best is None or score > progress.best:
            progress.best, progress.epochs_without_improvement = score, 0
            with replacing(output / "best") as folder:
                if accelerator.is_main_process:
                    judged.save_pretrained(folder)
                    processor.save_pretrained(folder)
        else:
            progress.epochs_without_improvement += 1
        save_checkpoint()
    if progress.epoch < recipe.epochs:
        logger.info(f"No better {recipe.metric} in {recipe.early_stopping_patience} epochs: stopped.")
    accelerator.end_training()
    return output / "best"


def check_output_folder(output: Path, run: dict[str, Any]) -> None:
    """Refuse, before any work is done, what would fail after hours of it.

    Args:
        run: The settings, which must be those of the run in the folder if it has left a checkpoint to go on from.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "recipe.test").write_text("")
        (output / "recipe.test").unlink()
    except OSError as error:
        raise OSError(f"--output-dir {output} cannot be written: {error.strerror or error}.") from error
    needed, free = 2e9, shutil.disk_usage(output).free  # two checkpoints and two models at once, with their optimizer
    if free < needed:
        raise OSError(f"--output-dir {output} has {free / 1e9:.1f} GB free; checkpoints need {needed / 1e9:.0f} GB.")
    if (output / "checkpoint").exists() or (output / "checkpoint.old").exists():
        # What may differ when a run goes on: where things lie, how long it is to run, how it is reported.
        free_to_change = {"output_dir", "preset", "cache_dir", "epochs", "early_stopping_patience", "num_workers"}
        free_to_change |= {"report_to", "checkpoint_every"}
        earlier = json.loads((output / "recipe.json").read_text())
        changed = [name for name in run if run[name] != earlier.get(name) and name not in free_to_change]
        if changed:
            raise ValueError(
                f"{output} holds a run with another {', '.join(changed)}: go on with its settings, or name another "
                "--output-dir."
            )


@torch.no_grad()
def move_average(averaged: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Keep `decay` of the averaged weights and take the rest from the model; only trained weights move."""
    trained = [pair for pair in zip(averaged.parameters(), model.parameters(), strict=True) if pair[1].requires_grad]
    torch._foreach_lerp_([old for old, _ in trained], [new for _, new in trained], 1 - decay)


def check_metric(name: str) -> None:
    """METEOR and SPICE need programs that may be missing, which shows when they score a caption."""
    if name in ("meteor", "spice") and name not in score_captions({"": "a dog"}, {"": ["a dog"]}):
        raise ValueError(
            f"--metric {name} cannot be measured on this machine: it needs Java (SPICE more, see metrics)."
        )


def build_model(recipe: Recipe, train_set: Dataset) -> tuple[ShowAttendForConditionalGeneration, ShowAttendProcessor]:
    """The captioner to start from, and its processor: a new one, or `recipe.init_from` with the recipe's settings."""
    regularisers: dict[str, Any] = {
        "dropout": recipe.dropout,
        "feature_dropout": recipe.feature_dropout,
        "word_dropout": recipe.word_dropout,
        "doubly_stochastic_penalty": recipe.doubly_stochastic_penalty,
        "label_smoothing": recipe.label_smoothing,
        "finetune_last_stages": recipe.finetune_last_stages,
    }
    if recipe.init_from is not None:
        return load_captioner(recipe.init_from, **regularisers)
    tokenizer: BertTokenizer = load_tokenizer(recipe.tokenizer)
    if recipe.prune_tokenizer:
        captions = (caption for captions in train_set["captions"] for caption in captions)
        tokenizer = prune_tokenizer(tokenizer, captions)
    config = ShowAttendConfig(
        encoder_name=recipe.encoder_name,
        stride_in_1x1=recipe.stride_in_1x1,
        embed_size=recipe.embed_size,
        attention_dim=recipe.attention_dim,
        decoder_dim=recipe.decoder_dim,
        context_gate=recipe.context_gate,
        deep_output=recipe.deep_output,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **regularisers,
    )
    model = ShowAttendForConditionalGeneration(config)
    model.load_encoder_weights(recipe.encoder_weights)
    model.generation_config.max_length = recipe.max_length
    return model, ShowAttendProcessor(ShowAttendImageProcessor(), tokenizer)


def caption_labels(
    captions_of_photos: Iterable[list[str]], processor: ShowAttendProcessor, recipe: Recipe
) -> list[list[list[int]]]:
    """The word pieces of every caption of every photo, [SEP] at the end."""
    labels = []
    for captions in captions_of_photos:
        if not recipe.keep_final_stop:
            captions = [re.sub(r"[\s.]+$", "", caption) for caption in captions]
        padded = processor(text_target=captions, max_length=recipe.max_length)["labels"]
        labels.append([[piece for piece in pieces if piece != -100] for pieces in padded])
    return labels


def write_log(output: Path, figures: dict[str, Any], captions: dict[str, str], photos: Dataset) -> None:
    """A line of figures, the curves so far, and a few captions beside their photos."""
    log = output / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    lines = [line for line in lines if line["epoch"] < figures["epoch"]] + [figures]  # a repeated epoch stands once
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_curves(lines, output / "curves.png")
    (output / "samples").mkdir(exist_ok=True)
    few = photos.select(range(min(6, len(photos))))
    samples = [(load_image(row["image"]), captions[row["image_id"]]) for row in few]
    plot_samples(samples, output / "samples" / f"epoch-{figures['epoch']:03}.png")
