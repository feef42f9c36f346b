"""The page: an image, its captions, and the actions of its buttons."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.attention.streaming import stream_captions

from .api import MAX_BEAMS, MAX_CAPTIONS, TEMPERATURES, caption_endpoint
from .uploads import read_image
from .views import captions_html, error_html, examples_html, image_html

UPLOADS_KEPT = 3000  # seconds
UPLOADS_CHECKED = 600  # seconds between checks
MAX_WAITING = 20  # people in the queue
GREEDY, BEAMS, SAMPLES = "Greedy", "Beam search", "Sampling"
_HERE = Path(__file__).parent


def build_page(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, examples: Sequence[Path] = ()
) -> gr.Blocks:
    """The page, ready to launch. One image is captioned at a time; other visitors wait in a queue."""

    def show_captions(upload: dict[str, Any] | None, *controls: Any) -> Iterator[dict[gr.Component, Any]]:
        choose = {choosing: gr.Column(visible=True), captioned: gr.Column(visible=False)}
        if upload is None:  # it was removed, perhaps while it was captioned or waited in the queue
            yield choose
            return
        try:
            image = read_image(upload["path"])
        except OSError as error:
            yield {error_view: gr.HTML(error_html(error), visible=True), failed: upload["path"], **choose}
            return
        yield {
            error_view: gr.HTML("", visible=False),
            choosing: gr.Column(visible=False),
            captioned: gr.Column(visible=True),
            image_view: image_html(image),
            captions_view: captions_html([], growing=True),
        }
        for captions in stream_captions(model, processor, image, **generation_settings(*controls)):
            yield {captions_view: captions_html(captions, growing=True)}
        yield {captions_view: captions_html(captions)}

    def remove_image() -> dict[gr.Component, Any]:
        return {image_input: None, choosing: gr.Column(visible=True), captioned: gr.Column(visible=False)}

    def take_example(event: gr.EventData) -> str:
        return str(examples[int(event.number)].resolve())

    page = gr.Blocks(
        title="Show, Attend and Tell", analytics_enabled=False, delete_cache=(UPLOADS_CHECKED, UPLOADS_KEPT)
    )
    with page:
        gr.HTML(
            "<h1>Show, Attend and Tell</h1>"
            "<p>Give it a photo. It describes what it sees, word by word, and shows where it looked before each.</p>",
            elem_id="heading",
        )
        with gr.Column() as choosing:
            image_input = gr.Image(label="Photo", show_label=False, height=300, buttons=[], elem_id="image-input")
            error_view = gr.HTML(visible=False, elem_id="error")
            failed = gr.Textbox(visible=False)  # the path of the image that the error is about
            examples_view = gr.HTML(
                examples_html(examples), visible=bool(examples), elem_id="examples", js_on_load=_script("examples.js")
            )
        with gr.Column(visible=False) as captioned:
            image_view = gr.HTML(elem_id="image")
            captions_view = gr.HTML(elem_id="captions", js_on_load=_script("captions.js"))
            gr.HTML(
                "<p>Point at a word, tap it or use the arrow keys: the light shows where the network looked.</p>",
                elem_id="hint",
            )
            with gr.Row():
                another = gr.Button("Another photo", variant="primary", min_width=130)
                again = gr.Button("Caption again", min_width=130)
        controls = _controls()
        gr.HTML(
            "<p>Your photo goes to the computer that serves this page, nowhere else, and is deleted there within "
            f"{(UPLOADS_KEPT + UPLOADS_CHECKED) // 60} minutes.</p>",
            elem_id="small-print",
        )

        shown = gr.on(
            [image_input.change, again.click],
            show_captions,
            [image_input, *controls],
            [error_view, failed, choosing, captioned, image_view, captions_view],
            preprocess=False,  # gr.Image would decode the upload, whatever its size
            show_progress="minimal",
            show_progress_on=[image_input, captions_view],  # one of them is always visible
            trigger_mode="always_last",  # an image that comes meanwhile is captioned next
            concurrency_limit=1,
            concurrency_id="caption",
            api_name="page",
            api_visibility="undocumented",  # it returns parts of this page; programs call /caption
        )
        # The browser removes an image that failed: by the time of the answer, another one may have taken its place.
        shown.then(
            None, [image_input, failed], image_input, js="(image, failed) => image?.path === failed ? null : undefined"
        )
        examples_view.click(take_example, None, image_input, api_visibility="private")
        another.click(remove_image, None, [image_input, choosing, captioned], api_visibility="private")
        gr.api(caption_endpoint(model, processor), api_name="caption", concurrency_limit=1, concurrency_id="caption")
    return page.queue(max_size=MAX_WAITING)


def _controls() -> list[gr.Component]:
    """The inputs of [`generation_settings`]; only those of the chosen search are visible."""

    def show(search: str) -> list[gr.Slider]:
        return [gr.Slider(visible=visible) for visible in (search == BEAMS, search == SAMPLES, search != GREEDY)]

    with gr.Accordion("How it chooses its words", open=False, elem_id="controls"):
        search = gr.Radio([GREEDY, BEAMS, SAMPLES], value=GREEDY, label="Search", show_label=False, container=False)
        sliders = [
            gr.Slider(2, MAX_BEAMS, value=3, step=1, label="Beams", visible=False),
            gr.Slider(
                *TEMPERATURES, value=1, step=0.1, label="Temperature", info="Higher: more surprising", visible=False
            ),
            gr.Slider(1, MAX_CAPTIONS, value=3, step=1, label="Captions to compare", visible=False),
        ]
    search.change(show, search, sliders, api_visibility="private")
    return [search, *sliders]


def generation_settings(search: str, num_beams: float, temperature: float, num_captions: float) -> dict[str, Any]:
    """The controls' settings for [`stream_captions`], clipped to their bounds whatever a request contains."""
    if search == BEAMS:
        beams = int(_within(num_beams, 2, MAX_BEAMS))
        captions = int(_within(num_captions, 1, min(MAX_CAPTIONS, beams)))
        return {"num_beams": beams, "do_sample": False, "num_captions": captions}
    if search == SAMPLES:
        temperature = _within(float(temperature), *TEMPERATURES)
        captions = int(_within(num_captions, 1, MAX_CAPTIONS))
        return {"num_beams": 1, "do_sample": True, "temperature": temperature, "num_captions": captions}
    return {"num_beams": 1, "do_sample": False}


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def look() -> dict[str, Any]:
    """Arguments of `launch`: system fonts instead of Google's, and readable colours."""
    theme = gr.themes.Base(
        primary_hue="amber",
        neutral_hue="stone",
        font=[gr.themes.Font(name) for name in ("system-ui", "sans-serif")],
        font_mono=[gr.themes.Font("monospace")],
    )
    theme.set(
        color_accent="*primary_700",
        color_accent_soft_dark="*primary_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*neutral_900",
        button_primary_background_fill_hover="*neutral_700",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color_dark="*neutral_950",
    )
    return {"theme": theme, "css_paths": _HERE / "page.css", "footer_links": []}


def _script(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
