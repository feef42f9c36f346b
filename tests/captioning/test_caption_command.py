import csv
import errno
import functools
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from tiny_flickr import COLOURS, ROOT, SHAPES, draw, environment
from transformers.utils import logging

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend import command_line
from showattend.commands.caption import main

MakeModel = Callable[..., ShowAttendForConditionalGeneration]
SCRIPT = ROOT / "scripts" / "caption.py"
IMAGES = [f"photos/{name}.jpg" for name in ("a", "b", "c", "d", "e", "f", "sub/g")]


class Done(NamedTuple):
    code: int
    lines: list[str]  # of standard output
    errors: list[str]  # lines of standard error


Run = Callable[..., Done]


@pytest.fixture
def checkpoint(tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel, processor: ShowAttendProcessor) -> Path:
    folder = tmp_path_factory.getbasetemp() / "captioner"  # one for all tests
    if not folder.exists():
        make_model().save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images in a folder and one below; tests run beside it and name it `photos`."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    drawings = [(colour, shape) for shape in SHAPES for colour in COLOURS][1::2]
    for path, (colour, shape) in zip(IMAGES, drawings, strict=False):
        (tmp_path / path).write_bytes(draw(colour, shape))
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


@pytest.fixture
def run(
    checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Run]:
    """Runs the command in this process, beside the folder `photos`."""
    monkeypatch.chdir(images.parent)

    def run(*arguments: object, stdin: bytes | None = b"", default_checkpoint: bool = False) -> Done:
        named = [] if default_checkpoint else [f"--checkpoint={checkpoint}"]
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main([*named, *map(str, arguments)])
        except SystemExit as exit:  # argparse's
            code = int(exit.code or 0)
        out, err = (written.decode("utf-8", "surrogateescape") for written in capsysbinary.readouterr())
        return Done(code, out.splitlines(), err.splitlines())

    verbosities = logging.get_verbosity(), hub_logging.get_verbosity()
    yield run
    logging.set_verbosity(verbosities[0])
    hub_logging.set_verbosity(verbosities[1])
    logging.enable_progress_bar()


def command(checkpoint: Path, *arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), f"--checkpoint={checkpoint}", *map(str, arguments)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- what is printed ---


def test_one_image_prints_one_sentence(run: Run) -> None:
    one = run("photos/a.jpg")
    assert (one.code, one.errors, len(one.lines)) == (0, [], 1)
    assert "\t" not in one.lines[0]
    assert run("photos/notes.txt") == (
        1,
        [],
        ["error: cannot read photos/notes.txt: it is empty or in no image format that Pillow knows"],
    )


def test_several_images_print_their_names(run: Run, images: Path) -> None:
    single = {name: run(name).lines[0] for name in IMAGES}
    assert len(set(single.values())) > 3
    expected = [f"{name}\t{single[name]}" for name in IMAGES]
    assert run("photos", "--batch-size=3") == (0, expected, [])
    assert run(*IMAGES[:2]).lines == expected[:2]
    assert run("photos/*.jpg").lines == expected[:-1]
    assert run("-", stdin="\0".join(IMAGES).encode()).lines == expected
    assert run("photos/sub").lines == expected[-1:]
    weird = "photos/new\nline \udcff.jpg"
    Path(weird).write_bytes(Path("photos/a.jpg").read_bytes())
    assert run("photos").lines[-2] == f"photos/new\\nline \udcff.jpg\t{single['photos/a.jpg']}"


def test_settings_reach_generate(run: Run) -> None:
    assert len(set(run("photos/a.jpg", "--num-captions=3", "--max-length=6").lines)) == 3
    assert run("photos/a.jpg", "--prefix=A red ball").lines[0].startswith("a red ball")
    drawn = {line for _ in range(4) for line in run("photos/a.jpg", "--sample", "--num-captions=3").lines}
    assert len(drawn) > 3
    likeliest = {line for _ in range(4) for line in run("photos/a.jpg", "--sample", "--temperature=0.001").lines}
    assert likeliest == set(run("photos/a.jpg", "--num-beams=1").lines)
    assert run("photos/a.jpg", "--num-beams=2", "--dtype=bfloat16").code == 0


# --- files of captions ---


def test_output_files(run: Run) -> None:
    assert run("photos", "--output=captions.jsonl", "--num-captions=2") == (0, [], [])
    rows = read(Path("captions.jsonl"))
    assert [row["path"] for row in rows] == [name for name in IMAGES for _ in range(2)]
    assert [set(row) for row in rows] == [{"path", "caption", "score"}] * 14
    assert run("photos", "--output=captions.csv", "--num-captions=2").code == 0
    with Path("captions.csv").open(newline="") as file:
        assert [row | {"score": float(row["score"])} for row in csv.DictReader(file)] == rows
    assert run("photos", "--num-captions=2").lines == [f"{row['path']}\t{row['caption']}" for row in rows]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_resume(run: Run, ending: str) -> None:
    broken = Path("photos/c.jpg")
    image = broken.read_bytes()
    whole, resumed = Path(f"whole.{ending}"), Path(f"resumed.{ending}")
    assert run("photos", f"--output={whole}").code == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    first = len(lines) - len(IMAGES)
    resumed.write_bytes(b"".join(lines[: first + 2]) + lines[first + 2][:20])
    broken.write_bytes(b"")
    assert run("photos", f"--output={resumed}", "--resume").code == 1
    assert resumed.read_bytes().splitlines(keepends=True) == lines[: first + 2] + lines[first + 3 :]
    broken.write_bytes(image)
    done = run("photos", f"--output={resumed}", "--resume")  # what failed is tried again
    assert done == (0, [], ["6 of the photos already had captions"])
    assert sorted(resumed.read_bytes().splitlines(keepends=True)) == sorted(lines)
    before = resumed.read_bytes()
    assert run("photos", f"--output={resumed}").code == 2
    assert resumed.read_bytes() == before


# --- what goes wrong ---


def test_each_failure_is_one_line_and_the_rest_is_captioned(run: Run) -> None:
    expected = run("photos").lines
    Path("photos/b2.jpg").write_bytes(Path("photos/b.jpg").read_bytes()[:500])
    Path("photos/b3.jpg").write_bytes(b"")
    Path("photos/b4.jpg").symlink_to("nowhere")
    Path("empty\nfolder").mkdir()
    enormous = Path("photos/b5.png")
    Image.new("1", (14000, 14000)).save(enormous)
    done = run("photos", "missing.jpg", "empty\nfolder", "no*match")
    assert (done.code, done.lines) == (1, expected)
    named = [
        "photos/b2.jpg",
        "photos/b3.jpg",
        "photos/b4.jpg",
        "photos/b5.png",
        "missing.jpg",
        "empty\\nfolder",
        "no*match",
    ]
    assert len(done.errors) == len(named)
    for name in named:
        assert sum(name in line for line in done.errors) == 1
    assert all(line.startswith("error: ") for line in done.errors)
    assert run("-") == (0, [], [])


def test_large_images_are_captioned_without_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    done = run("photos")
    assert (done.code, len(done.lines), done.errors) == (0, 7, [])


def test_urls(run: Run, images: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(images)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        site = f"http://127.0.0.1:{server.server_port}"
        done = run(f"{site}/a.jpg", f"{site}/missing.jpg", "photos/b.jpg")
    finally:
        server.shutdown()
        server.server_close()
    assert done.code == 1
    assert done.lines == [
        f"{site}/a.jpg\t{run('photos/a.jpg').lines[0]}",
        f"photos/b.jpg\t{run('photos/b.jpg').lines[0]}",
    ]
    [error] = done.errors
    assert f"{site}/missing.jpg" in error
    assert "404" in error


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--batch-size=0"], "'0' is not a whole number from 1"),
        (["--num-beams=two"], "'two' is not a whole number from 1"),
        (["--top-p=1.5", "--sample"], "'1.5' is not a number from 0.001 to 1"),
        (["--temperature=nan", "--sample"], "'nan' is not a number"),
        (["--temperature=2"], "need --sample"),
        (["--sample", "--num-beams=3"], "choose one of them"),
        (["--resume"], "--resume continues --output FILE"),
        (["--alt-text=html", "--output=a.csv"], "--alt-text takes one caption"),
        (["--alt-text=sidecar", "--num-captions=2"], "--alt-text takes one caption"),
        (["--dtype=int8"], "invalid choice"),
        (["--length-penalty=inf"], "'inf' is not a number from -100 to 100"),
        ([""], "an argument is empty"),
        (["--output="], "an argument is empty"),
        ([f"--output={'x' * 300}.csv"], f"error: {'x' * 300}.csv: File name too long"),
        (["--output=captions.txt"], "must end in .jsonl or .csv"),
        (["--output=nowhere/captions.csv"], "there is no folder nowhere"),
        (["--num-captions=3", "--num-beams=2"], "--num-captions 3 needs 3 or more --num-beams, not 2"),
        (["--prefix=a zebra", "--output=new.csv"], "does not know"),
        (["--checkpoint=nowhere", "--output=new.csv"], "There is no checkpoint folder nowhere."),
        (["--checkpoint=photos", "--output=new.csv"], "photos holds no captioner that can be loaded"),
    ],
)
def test_wrong_arguments(run: Run, arguments: list[str], error: str) -> None:
    done = run("photos", *arguments)
    assert (done.code, done.lines) == (2, [])
    assert error in done.errors[-1]
    assert not Path("new.csv").exists()


def test_standard_input_that_is_closed(run: Run) -> None:
    assert "standard input, which is closed" in run("-", stdin=None).errors[-1]
    assert run("photos/a.jpg", stdin=None).code == 0


def test_standard_output_that_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `>&-`: nobody would see the captions."""
    monkeypatch.setattr(sys, "stdout", None)
    message = "error: the captions go to standard output, which is closed: name a file with --output"
    assert run("photos/a.jpg") == (2, [], [message])
    assert run("photos/a.jpg", "--output=captions.csv").code == 0
    assert run("photos/a.jpg", "--alt-text=sidecar").code == 0
    assert Path("photos/a.txt").exists()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            "command.print_columns",
            OSError(errno.ENOSPC, "No space left on device"),
            "cannot write standard output: No space left on device",
        ),
        (
            "generate.TorchCaptioner._generate",
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "not enough memory for 5 photos at a time: lower --batch-size or --num-beams",
        ),
    ],
)
def test_a_disk_or_a_memory_that_is_full(
    run: Run, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception, message: str
) -> None:
    def full(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(f"showattend.captioning.{function}", full)
    assert run("photos", "--batch-size=5") == (1, [], [f"error: {message}"])


def test_the_default_checkpoint(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone has one, whatever folder the command runs in; an installed package has none."""
    monkeypatch.setattr(command_line, "DEFAULT_CHECKPOINT", checkpoint)
    assert run("photos/a.jpg", default_checkpoint=True) == run("photos/a.jpg")
    monkeypatch.setattr(command_line, "DEFAULT_CHECKPOINT", checkpoint / "none")
    missing = "error: the following arguments are required: --checkpoint"
    assert run("photos/a.jpg", default_checkpoint=True) == (2, [], [missing])


# --- alt texts ---


def test_alt_texts_of_pages(run: Run) -> None:
    caption = {name: run(name).lines[0] for name in IMAGES}
    page, other, whole = Path("photos/page.html"), Path("photos/sub/other.htm"), Path("photos/whole.html")
    page.write_text('<p>\n<img src="a.jpg"><img src="missing.jpg"><img alt="" src="b.jpg">\n<img src="/sub/g.jpg">')
    other.write_text('<img src="../b.jpg">')
    whole.write_text('<img alt="a dog" src="a.jpg">')
    done = run("photos", "--alt-text=html", "--batch-size=2")
    assert done.code == 1
    assert done.lines == [
        f"photos/page.html:2\t{caption['photos/a.jpg']}",
        f"photos/page.html:3\t{caption['photos/sub/g.jpg']}",
        f"photos/sub/other.htm:1\t{caption['photos/b.jpg']}",
    ]
    assert done.errors == ["error: photos/page.html:2: no such image file: photos/missing.jpg"]
    assert page.read_text() == (
        f'<p>\n<img alt="{caption["photos/a.jpg"]}" src="a.jpg"><img src="missing.jpg"><img alt="" src="b.jpg">\n'
        f'<img alt="{caption["photos/sub/g.jpg"]}" src="/sub/g.jpg">'
    )
    assert other.read_text() == f'<img alt="{caption["photos/b.jpg"]}" src="../b.jpg">'
    again = run("photos/sub", "photos/whole.html", "--alt-text=html")
    assert again == (0, [], [])
    page.write_text('<img src="a.jpg"><img>')
    done = run("photos/page.html", "missing.html", "--alt-text=html")
    assert done.errors == [
        "error: photos/page.html:1: the <img> has no src",
        "error: cannot read missing.html: No such file or directory",
    ]
    assert page.read_text() == f'<img alt="{caption["photos/a.jpg"]}" src="a.jpg"><img>'


def test_alt_texts_beside_images(run: Run) -> None:
    caption = run("photos/b.jpg").lines[0]
    Path("photos/a.txt").write_text("my own words")
    shutil.copy("photos/b.jpg", "photos/b.jpeg")
    done = run("photos", "--alt-text=sidecar")
    assert done.code == 1  # two images, one text
    assert [line for line in done.errors if "b.txt" in line] == [
        "error: photos/b.jpg: photos/b.txt has been written for another photo"
    ]
    assert Path("photos/a.txt").read_text() == "my own words"
    assert Path("photos/b.txt").read_text() == f"{caption}\n"
    assert Path("photos/sub/g.txt").exists()
    again = run("photos", "--alt-text=sidecar")
    assert again == (0, [], ["8 of the photos already had captions"])


# --- signals, pipes, processes ---


def test_interrupted_at_once_with_what_was_done(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    arguments = command(checkpoint, "-", "--batch-size=1", f"--output={output}")
    process = subprocess.Popen(
        arguments,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and what they start would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    # When it captions the first image it has read ahead to its limit, and then waits for names that do not come.
    process.stdin.write("".join(f"{image}\n" for image in sorted(images.glob("*.jpg"))[:3]))
    process.stdin.flush()
    deadline = time.monotonic() + 240
    while not (output.exists() and output.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=60)
    assert process.stderr is not None
    assert (code, process.stderr.read()) == (130, "")
    assert [row["path"] for row in read(output)] == [str(images / "a.jpg")]


def test_a_pipe_that_is_closed(checkpoint: Path, images: Path) -> None:
    names = f"{images / 'a.jpg'}\n" * 200
    arguments = command(checkpoint, "-", "--batch-size=1")
    process = subprocess.Popen(
        arguments, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(names)
    process.stdin.close()
    assert process.stdout.readline().startswith(f"{images / 'a.jpg'}\t")
    process.stdout.close()
    assert process.wait(timeout=240) == 141
    assert process.stderr.read() == ""


def test_several_processes_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would caption everything, and all write into one file."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run("photos", "--output=new.csv")
    assert (done.code, done.lines) == (2, [])
    assert "a single process" in done.errors[-1]
    assert not Path("new.csv").exists()


# --- exported captioners ---


@pytest.fixture
def exported(checkpoint: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Path:
    folder = checkpoint.with_name("exported")  # one for all tests
    if not (folder / "captioner.json").exists():
        for library in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(library)
        from showattend.export.onnx_export import export_onnx

        export_onnx(checkpoint, folder, ["float32"])
        capsysbinary.readouterr()  # warnings of the libraries that export
    return folder


def test_an_exported_captioner_captions_as_its_checkpoint(run: Run, exported: Path) -> None:
    Path("photos/b2.jpg").write_bytes(b"")
    searches = [
        [],
        ["--num-beams=1", "--prefix=A red"],
        ["--num-captions=3", "--length-penalty=2", "--max-length=8"],
        ["--num-beams=4", "--num-captions=2", "--prefix=the dog runs"],
    ]
    texts = set()
    for number, search in enumerate(searches):
        rows = []
        for name, checkpoint in (("torch", []), ("onnx", [f"--checkpoint={exported}"])):
            done = run("photos", "-", *checkpoint, *search, f"--output={name}{number}.jsonl", stdin=b"photos/a.jpg\n")
            assert (done.code, len(done.errors)) == (1, 1), done.errors
            assert "cannot read photos/b2.jpg: it is empty" in done.errors[0]
            rows.append(read(Path(f"{name}{number}.jsonl")))
        expected, ours = rows
        assert [(row["path"], row["caption"]) for row in ours] == [(row["path"], row["caption"]) for row in expected]
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in expected], abs=2e-4)
        texts |= {row["caption"] for row in ours}
    assert len(texts) > 15
    assert run("photos", f"--checkpoint={exported}", "--output=onnx0.jsonl", "--resume").code == 1
    assert len(read(Path("onnx0.jsonl"))) == 8


def test_what_an_exported_captioner_refuses(run: Run, exported: Path) -> None:
    for arguments, error in (
        (["--sample"], "cannot --sample them: use its checkpoint"),
        (["--dtype=int8"], "holds float32, not the precision 'int8'"),
        (["--prefix=a zebra"], "does not know"),
        (["--prefix=a dog", "--max-length=3"], "--prefix has 3 tokens with [CLS], which leaves none"),
        (["--num-beams=1", "--length-penalty=2"], "--length-penalty chooses among beams"),
    ):
        done = run("photos", f"--checkpoint={exported}", "--output=new.csv", *arguments)
        assert (done.code, done.lines) == (2, [])
        assert error in done.errors[-1]
        assert not Path("new.csv").exists()


def test_prefixes_have_the_processors_tokens(exported: Path, processor: ShowAttendProcessor) -> None:
    from showattend.captioning.exported import ExportedCaptioner

    captioner = ExportedCaptioner(exported)
    for prefix in ("a Red  BALL", "dog,cat", "the d\u00f3g", "", " white\tand black "):
        assert "[UNK]" not in prefix
        expected = processor(text=prefix)["decoder_input_ids"][0][1:]
        if processor.tokenizer.unk_token_id in expected:
            with pytest.raises(ValueError, match="does not know"):
                ExportedCaptioner(exported, prefix=prefix)
        else:
            assert list(ExportedCaptioner(exported, prefix=prefix).search.prefix) == expected
    assert captioner.search.prefix == ()


def test_torch_is_not_imported_for_an_exported_captioner(exported: Path, images: Path) -> None:
    code = (
        "import sys; from showattend.__main__ import main; assert main(sys.argv[1:]) == 0; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "caption", str(images), f"--checkpoint={exported}", "--prefix=a dog"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    *captions, modules = done.stdout.splitlines()
    assert len(captions) == 7
    assert modules == "set()"
