"""A trained captioner as ONNX graphs, which run without torch: in Python (`onnx_captioner.py`), browsers and phones.

Two graphs make a caption. The encoder runs once per image, the decoder once per token:

    encoder: pixel_values (images, 3, height, width)
             -> values (images, positions, ...), keys (images, positions, attention_dim), h, c
    decoder: input_ids (images, captions), h, c, values, keys
             -> logits (images, captions, vocab_size), next_h, next_c, attention (images, captions, positions)

`h` and `c` are the LSTM's state: (images, 1, decoder_dim) from the encoder, (images, captions, decoder_dim) from the
decoder. `values` are the grid's features, already projected by the decoder. The captions of an image, which are the
beams of a search, share them. Inputs and outputs are float32 in every precision.
"""

import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer  # torch's exporter needs onnxscript as well
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic
from onnxruntime.quantization import quantize_static as quantize_statically
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import nn

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.modeling_showattend import ImageMemory
from showattend.checkpoints import load_captioner, weights_digest

from . import PRECISIONS, onnx_captioner
from .onnx_captioner import SETTINGS_FILE, Floats, OnnxCaptioner, preprocess, read_image

logger = logging.getLogger(__name__)

# The largest difference from torch: |difference| / |value|, in the 2-norm.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 0.5}
CALIBRATION_IMAGES = 256
CLIPPED = 5e-6  # of an activation's values, at either end of its int8 range
CAPTIONS = 3  # captions per image when graphs are compared


class _Encoder(nn.Module):
    """Everything that is computed once per image."""

    def __init__(self, model: ShowAttendForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.model.encoder(pixel_values=pixel_values).last_hidden_state  # (images, positions, encoder_dim)
        memory, (h, c) = self.model.decoder.start(features, project=True)
        return memory.value, memory.key, h.unsqueeze(1), c.unsqueeze(1)


class _DecodingStep(nn.Module):
    """The decoder's `unroll` for one token, with the memory and the state as inputs and outputs."""

    def __init__(self, model: ShowAttendForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self,
        input_ids: torch.Tensor,  # (images, captions)
        h: torch.Tensor,  # (images, captions, decoder_dim)
        c: torch.Tensor,
        values: torch.Tensor,  # (images, positions, ...)
        keys: torch.Tensor,  # (images, positions, attention_dim)
    ) -> tuple[torch.Tensor, ...]:
        memory = ImageMemory(keys, values, projected=True)
        state = h.flatten(0, 1), c.flatten(0, 1)  # (images * captions, decoder_dim) each
        outputs, attentions, _, state = self.decoder.unroll(input_ids.reshape(-1, 1), memory, state)
        results = (self.decoder.fcn(outputs), *state, attentions)
        return tuple(result.reshape(*input_ids.shape, result.shape[-1]) for result in results)


def export_onnx(
    checkpoint: str | Path,
    output_dir: str | Path,
    precisions: Sequence[str] = PRECISIONS,
    calibration: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Write a captioner's graphs, its settings and `onnx_captioner.py`: a folder that runs without the checkpoint.

    - float32: the same captions as torch.
    - float16: the weights take half the space; computation stays in float32, which is fastest on CPUs.
    - int8: weights and, in the encoder, activations of 8 bits. The ranges of the encoder's activations are measured on
      images; the decoder's are computed at every step.

    Args:
        output_dir: Where to write; an earlier export there is replaced.
        calibration: A folder of images like those to be captioned, for int8; 256 of them are used.

    Returns:
        For each precision the relative difference of its `values`, `logits` and `attention` from torch's, and its
        `megabytes`.

    Raises:
        ValueError: If a precision is unknown, there are no images to calibrate int8 on, the captioner has settings that
            `onnx_captioner.py` does not follow, torch cannot export its encoder, or a graph differs from torch by more
            than rounding explains; then nothing is written.
    """
    if unknown := [precision for precision in precisions if precision not in PRECISIONS]:
        raise ValueError(f"The export supports the precisions {', '.join(PRECISIONS)}, not {unknown[0]!r}.")
    if "int8" in precisions and calibration is None:
        raise ValueError(
            "int8 needs a folder of photos to calibrate on: name one with `calibration`, or leave int8 out."
        )
    model, processor = load_captioner(checkpoint)
    settings = _settings(model, processor) | {"weights_sha256": weights_digest(checkpoint)}
    settings["files"] = {
        precision: {part: f"{part}.{precision}.onnx" for part in ("encoder", "decoder")} for precision in precisions
    }
    size = settings["preprocessing"]["height"], settings["preprocessing"]["width"]
    if calibration is not None:
        images = _calibration_images(Path(calibration), settings["preprocessing"])
    else:
        images = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)

    report = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        graphs = {"encoder": _encoder_graph(model, size), "decoder": _decoder_graph(model, settings)}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copy(onnx_captioner.__file__, folder)
        for precision in precisions:
            files = {part: folder / name for part, name in settings["files"][precision].items()}
            if precision == "int8":
                _quantize_encoder(graphs["encoder"], files["encoder"], images)
                _quantize_decoder(graphs["decoder"], files["decoder"])
            else:
                for part, graph in graphs.items():
                    onnx.save(_with_half_weights(graph) if precision == "float16" else graph, files[part])
            differences = _differences(OnnxCaptioner.from_pretrained(folder, precision), model, images[:2])
            for name, difference in differences.items():
                if not difference <= TOLERANCES[precision]:  # a NaN is not
                    raise ValueError(
                        f"The {precision} graphs differ from torch's {name} by {difference:.1e} of their size, "
                        f"more than {TOLERANCES[precision]:.0e}: nothing was written."
                    )
            report[precision] = differences | {"megabytes": sum(file.stat().st_size for file in files.values()) / 1e6}
        _replace(Path(output_dir), folder)
    return report


def _replace(output_dir: Path, folder: Path) -> None:
    """Move the files of `folder` to `output_dir`, the settings last, because they name the others."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in [SETTINGS_FILE, *(f"{part}.{p}.onnx" for part in ("encoder", "decoder") for p in PRECISIONS)]:
            (output_dir / name).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == SETTINGS_FILE):
            shutil.move(file, output_dir / file.name)
    except OSError as error:
        raise OSError(f"{output_dir} cannot be written: {error.strerror or error}.") from error


def _settings(model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor) -> dict[str, Any]:
    """The settings that a program needs besides the graphs; `files` is added later."""
    images, tokenizer = processor.image_processor, processor.tokenizer
    height, width = images.size.get("height"), images.size.get("width")
    if not (images.do_resize and height and width) or images.do_center_crop:
        raise ValueError("The export supports images that are resized to a height and a width, not cropped ones.")
    followed = {"max_length", "num_beams", "length_penalty", "no_repeat_ngram_size"}
    followed |= {"decoder_start_token_id", "eos_token_id"}
    # These do not change the captions:
    followed |= {"bos_token_id", "pad_token_id", "use_cache", "transformers_version", "_from_model_config"}
    followed |= {"output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate"}
    generation = model.generation_config.to_diff_dict()
    if odd := sorted(name for name, value in generation.items() if name not in followed and value not in (None, False)):
        raise ValueError(f"The export does not support the generation setting {', '.join(odd)} of this captioner.")
    required = ("decoder_start_token_id", "eos_token_id", "max_length")
    for name in required:
        if not isinstance(generation.get(name), int):
            raise ValueError(f"The export needs one {name} in the captioner's generation config.")
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if len(vocabulary) != model.config.vocab_size:
        raise ValueError(f"The tokenizer has {len(vocabulary)} tokens, the network {model.config.vocab_size}.")
    rows, columns = model.encoder.grid_shape(height, width)
    return {
        "preprocessing": {
            "height": height,
            "width": width,
            "resample": Image.Resampling(images.resample).name.lower(),  # as in Pillow, so antialiased
            "background": "white",  # where an image is transparent
            "channels": "RGB",
            "rescale_factor": images.rescale_factor if images.do_rescale else 1.0,
            "mean": np.broadcast_to(images.image_mean if images.do_normalize else 0.0, 3).tolist(),
            "std": np.broadcast_to(images.image_std if images.do_normalize else 1.0, 3).tolist(),
        },
        "generation": {
            **{name: generation[name] for name in required},  # max_length counts the start token
            "num_beams": generation.get("num_beams") or 1,
            "length_penalty": generation.get("length_penalty", 1.0),
            "no_repeat_ngram_size": generation.get("no_repeat_ngram_size") or 0,
        },
        "attention_grid": {"rows": rows, "columns": columns},
        "decoder_dim": model.config.decoder_dim,
        "special_token_ids": sorted(tokenizer.all_special_ids),
        "unk_token": tokenizer.unk_token,
        "normalizer": {name: value for name, value in normalizer.items() if name != "type"},  # of tokenizers' BERT
        "vocabulary": vocabulary,
    }


def _encoder_graph(model: ShowAttendForConditionalGeneration, size: tuple[int, int]) -> onnx.ModelProto:
    images = torch.export.Dim("images")
    return _to_onnx(
        _Encoder(model), {"pixel_values": (torch.zeros(2, 3, *size), {0: images})}, ["values", "keys", "h", "c"]
    )


def _decoder_graph(model: ShowAttendForConditionalGeneration, settings: dict[str, Any]) -> onnx.ModelProto:
    images, captions = torch.export.Dim("images"), torch.export.Dim("captions")
    grid = settings["attention_grid"]
    positions, config = grid["rows"] * grid["columns"], model.config
    state = 2, CAPTIONS, config.decoder_dim
    width = model.decoder.project(torch.zeros(1, 1, config.encoder_dim)).shape[-1]
    inputs = {
        "input_ids": (torch.zeros(2, CAPTIONS, dtype=torch.long), {0: images, 1: captions}),
        "h": (torch.zeros(state), {0: images, 1: captions}),
        "c": (torch.zeros(state), {0: images, 1: captions}),
        "values": (torch.zeros(2, positions, width), {0: images}),
        "keys": (torch.zeros(2, positions, config.attention_dim), {0: images}),
    }
    return _to_onnx(_DecodingStep(model), inputs, ["logits", "next_h", "next_c", "attention"])


def _to_onnx(
    module: nn.Module, inputs: dict[str, tuple[torch.Tensor, Any]], output_names: list[str]
) -> onnx.ModelProto:
    """Trace a module in eval mode; `inputs` are examples and their dynamic dimensions."""
    examples, dynamic_shapes = zip(*inputs.values(), strict=True)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # torch 2.8 prints what it rewrote
        warnings.simplefilter("ignore")  # which torch addresses to itself
        try:
            program = torch.onnx.export(
                module.eval(),
                examples,
                dynamo=True,
                input_names=list(inputs),
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:  # such as an encoder whose steps depend on the pixels
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise ValueError(f"torch cannot export this captioner ({reason}): nothing was written.") from error
    assert program is not None
    # Fold constants: each graph reads a part of the LSTM's weights, and would otherwise hold the whole.
    onnxscript.optimizer.optimize(program.model, input_size_limit=2**31, output_size_limit=2**31)
    graph = program.model_proto
    del graph.graph.value_info[:]  # torch 2.8 leaves shapes there from before the weights were folded
    for node in graph.graph.node:
        del node.metadata_props[:]  # stack traces, which reveal this machine's folders
    return graph


def _with_half_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Keep large weights in float16 and cast them when the graph is loaded.

    Computing in float16 would be slower on a CPU, which casts back and forth, and the graph no smaller.
    """
    half = onnx.ModelProto()
    half.CopyFrom(graph)
    casts = []
    for weight in half.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and np.prod(weight.dims) >= 1024:
            name = weight.name
            values = onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}.float16"))
            casts.append(
                onnx.helper.make_node("Cast", [weight.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT)
            )
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half


class _OneImage(CalibrationDataReader):
    """The input that ONNX Runtime asks for although all ranges are given."""

    def __init__(self, images: Floats) -> None:
        self.inputs = iter([{"pixel_values": images[:1]}])

    def get_next(self) -> dict[str, Floats] | None:
        return next(self.inputs, None)


def _quantize_encoder(graph: onnx.ModelProto, file: Path, images: Floats) -> None:
    onnx.save(graph, file)
    with _quiet():
        quant_pre_process(file, file, skip_symbolic_shape=True, skip_optimization=True)
        graph = onnx.load(file)
        ranges = _activation_ranges(graph, images)
        quantize_statically(
            file,
            file,
            _OneImage(images),
            # A sum of the residual stream is rounded where a convolution reads it, not on its way to the next sum.
            nodes_to_exclude=[node.name for node in graph.graph.node if node.op_type == "Add"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "TensorQuantOverrides": {name: [{"rmin": low, "rmax": high}] for name, (low, high) in ranges.items()},
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Concat"],  # the graph's outputs are float32
            },
        )


def _activation_ranges(graph: onnx.ModelProto, images: Floats) -> dict[str, tuple[np.float32, np.float32]]:
    """The range of each activation over the images, without the share `CLIPPED` of its values at either end.

    ONNX Runtime's own calibration by percentiles counts in coarse bins, and its ranges give a larger error.
    """
    names = [name for node in graph.graph.node for name in node.output if name]
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.type == "tensor(float)"]  # not shapes
    lowest: dict[str, Floats] = {}
    highest: dict[str, Floats] = {}
    for image in images:
        outputs = session.run(names, {"pixel_values": image[None]})
        for name, values in [("pixel_values", image), *zip(names, outputs, strict=True)]:
            kept = min(1 + int(CLIPPED * values.size * len(images)), values.size)
            low = np.append(lowest.get(name, values[:0].ravel()), values.ravel())
            high = np.append(highest.get(name, values[:0].ravel()), values.ravel())
            lowest[name] = np.partition(low, kept - 1)[:kept]
            highest[name] = np.partition(high, -kept)[-kept:]
    return {name: (min(lowest[name].max(), np.float32(0)), highest[name].min()) for name in lowest}


def _quantize_decoder(graph: onnx.ModelProto, file: Path) -> None:
    onnx.save(graph, file)  # given the graph itself, ONNX Runtime removes constants that it still needs
    with _quiet():
        quant_pre_process(file, file, skip_symbolic_shape=True)  # slices of weights become constants
        quantize_dynamic(file, file, per_channel=True, weight_type=QuantType.QInt8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress and advice of ONNX Runtime's quantisation."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)


def _calibration_images(folder: Path, preprocessing: dict[str, Any]) -> Floats:
    """`CALIBRATION_IMAGES` of a folder, evenly spaced in its order, as `pixel_values`."""
    Image.init()
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in Image.EXTENSION]
    count = min(CALIBRATION_IMAGES, len(files))
    images = []
    for file in (files[number * len(files) // count] for number in range(count)):
        try:
            images.append(preprocess(read_image(file), preprocessing))
        except OSError as error:
            logger.warning("%s; it is left out of the calibration", error)
    if not images:
        raise ValueError(f"`calibration` {folder} holds no photo to calibrate int8 on.")
    return np.stack(images)


@torch.inference_mode()
def _differences(
    captioner: OnnxCaptioner, model: ShowAttendForConditionalGeneration, images: Floats
) -> dict[str, float]:
    """The relative difference from torch over all steps of a few captions per image."""
    pixel_values = torch.from_numpy(images)
    input_ids = model.generate(pixel_values, num_beams=CAPTIONS, num_return_sequences=CAPTIONS)
    expected = model(pixel_values=pixel_values, decoder_input_ids=input_ids)

    values, keys, h, c = captioner.encoder.run(["values", "keys", "h", "c"], {"pixel_values": images})
    h, c = h.repeat(CAPTIONS, axis=1), c.repeat(CAPTIONS, axis=1)  # (images, captions, decoder_dim)
    steps = []
    for ids in input_ids.unflatten(0, (-1, CAPTIONS)).unbind(dim=-1):
        inputs = {"input_ids": ids.numpy(), "h": h, "c": c, "values": values, "keys": keys}
        logits, h, c, attention = captioner.decoder.run(["logits", "next_h", "next_c", "attention"], inputs)
        steps.append((logits, attention))
    logits, attention = (np.stack(step, axis=2) for step in zip(*steps, strict=True))  # (images, captions, steps, ...)

    def difference(ours: Floats, torchs: torch.Tensor) -> float:
        theirs = torchs.numpy().reshape(ours.shape)
        return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))

    return {
        "values": difference(values, model.decoder.project(expected.encoder_last_hidden_state)),
        "logits": difference(logits, expected.logits),
        "attention": difference(attention, expected.cross_attentions[0]),
    }
