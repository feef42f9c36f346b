"""transformers' conventions, as its own test mixins state them: `make test-conformance`.

The mixins come with the sdist of the installed version. This is for 5.23 and later: earlier mixins need
other testers. Tests that do not apply are listed below with reasons; tests that a release adds are run.
"""

import unittest
from collections.abc import Callable
from typing import Any

import library
import torch
from transformers import BertTokenizer

from modeling_showattend import (
    ShowAttendConfig,
    ShowAttendForConditionalGeneration,
    ShowAttendImageProcessor,
    ShowAttendProcessor,
)

modeling = library.load("test_modeling_common")
processing = library.load("test_processing_common")
image_processing = library.load("test_image_processing_common")
configuration = library.load("test_configuration_common")
ModelTesterMixin: Any = modeling.ModelTesterMixin
ImageProcessingTestMixin: Any = image_processing.ImageProcessingTestMixin
ProcessorTesterMixin: Any = processing.ProcessorTesterMixin


def skipping(reasons: dict[str, str]) -> Callable[[Any], Any]:
    def decorate(test_case: Any) -> Any:
        for name, reason in reasons.items():
            for test in [test for test in dir(test_case) if test == name or test.startswith(f"{name}_0")]:
                setattr(test_case, test, unittest.skip(reason)(getattr(test_case, test)))
        return test_case

    return decorate


class ModelTester:
    batch_size, seq_length, encoder_seq_length, is_training = 3, 5, 4, True
    hidden_size, num_hidden_layers, num_attention_heads = 16, 1, 1

    def get_config(self) -> ShowAttendConfig:
        sizes: dict[str, Any] = dict(embed_size=8, attention_dim=8, decoder_dim=16, vocab_size=99, dropout=0.0)
        return ShowAttendConfig(encoder_name="resnet18", pad_token_id=0, bos_token_id=2, eos_token_id=3, **sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[ShowAttendConfig, dict[str, torch.Tensor]]:
        pixel_values = modeling.floats_tensor([self.batch_size, 3, 64, 64])
        decoder_input_ids = modeling.ids_tensor([self.batch_size, self.seq_length], 99).clamp(min=4)
        return self.get_config(), {"pixel_values": pixel_values, "decoder_input_ids": decoder_input_ids}


@skipping(
    {
        "test_attention_outputs": "An LSTM has no self-attention; the cross attention is returned in any case.",
        "test_hidden_states_output": "The encoder is a ResNet: it has maps and no (batch, length, units).",
        "test_retain_grad_hidden_states_attentions": "As above: there are no encoder_hidden_states.",
        "test_generation_tester_mixin_inheritance": "The sdist holds no mixin of generation.",
        "test_model_base_model_prefix": "Encoder and decoder are the model's own: there is no base model within it.",
        "test_model_is_small": "The smallest ResNet has 11 million weights.",
        "test_resize_tokens_embeddings": "It looks for input_ids; test_conventions.py resizes the embeddings.",
        "test_resize_embeddings_untied": "As above.",
    }
)
class ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (ShowAttendForConditionalGeneration,)
    is_encoder_decoder = True

    def setUp(self) -> None:
        self.model_tester = ModelTester()

    def _prepare_for_class(self, inputs_dict: dict[str, Any], model_class: Any, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return inputs | {"labels": inputs["decoder_input_ids"]} if return_labels else inputs


class ConfigTest(unittest.TestCase):
    def test_config(self) -> None:
        tester = configuration.ConfigTester(self, config_class=ShowAttendConfig, decoder_dim=37)
        tester.run_common_tests()


class ImageProcessorTester:
    batch_size, num_channels, min_resolution, max_resolution = 7, 3, 30, 400
    image_processing_classes = {"pil": ShowAttendImageProcessor}

    def __init__(self, parent: Any) -> None:
        self.parent = parent

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return {"size": {"height": 18, "width": 18}}

    def expected_output_image_shape(self, images: Any) -> tuple[int, int, int]:
        return 3, 18, 18

    def prepare_image_inputs(
        self, equal_resolution: bool = False, numpify: bool = False, torchify: bool = False
    ) -> Any:
        return image_processing.prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )


@skipping(
    {
        "test_call_numpy_4_channels": "An image of four channels is RGBA: it becomes RGB on white.",
        "test_new_models_require_torchvision_backend": "Pillow computes the pixels, whatever the way in.",
    }
)
class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester


@skipping(
    dict.fromkeys(
        [
            "test_kwargs_overrides_default_subprocessor_kwargs",
            "test_processor_text_has_no_visual",
            "test_structured_kwargs_nested_from_dict",
            "test_subprocessor_defaults_preserved_by_kwargs",
            "test_unstructured_kwargs",
            "test_unstructured_kwargs_batched",
        ],
        "The text is a prefix of the caption, which is never padded: an LSTM cannot skip padding.",
    )
    | dict.fromkeys(
        ["test_processor_from_and_save_pretrained", "test_processor_from_and_save_pretrained_as_nested_dict"],
        "A saved processor names its code (auto_map), the one in memory does not.",
    )
)
class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = ShowAttendProcessor
    text_input_name = "decoder_input_ids"

    @classmethod
    def _setup_image_processor(cls) -> ShowAttendImageProcessor:
        return ShowAttendImageProcessor(size={"height": 64, "width": 64})

    @classmethod
    def _setup_tokenizer(cls) -> BertTokenizer:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lower", "newer", "a", "dog"]
        return BertTokenizer(vocab={word: number for number, word in enumerate(words)})
