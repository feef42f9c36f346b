"""A captioner is uploaded completely or not at all, and generates the same captions after the download.

The Hub is hub_server.py; huggingface_hub and transformers talk to it as to the real one.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
from hub_server import TOKEN, Hub, running_hub
from safetensors.torch import load_file, save_file
from test_auto_classes import FILES, Json, in_process, run
from tiny_flickr import ROOT, environment, run_command

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.pipeline_showattend import ImageCaptioningPipeline
from showattend import DEFAULT_CHECKPOINT
from showattend.checkpoints import load_captioner
from showattend.hub.upload import files_to_share, share

SCRIPT = ROOT / "scripts" / "push_to_hub.py"
IMAGES = [ROOT / "docs" / "photos" / name for name in ("dog.webp", "cow.webp", "cat.png")]
IN_REPOSITORY = FILES | {"README.md", ".gitattributes"}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """An empty Hub, to which the libraries of this process are logged in."""
    server.repos, server.blobs, server.requests = {}, {}, []
    server.cut_uploads = server.cut_downloads = 0
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)  # what older versions of transformers use
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # what newer ones make on first use
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before each of five new attempts
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@pytest.fixture
def checkpoint(
    tmp_path: Path, make_model: Callable[..., ShowAttendForConditionalGeneration], processor: ShowAttendProcessor
) -> Path:
    make_model(seed=1).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def push(checkpoint: Path, repo_id: str = "someone/tiny", **options: str | bool) -> str:
    return share(files_to_share(checkpoint, repo_id), repo_id, **options)  # type: ignore[arg-type]


def test_one_commit_holds_everything(hub: Hub, checkpoint: Path) -> None:
    (checkpoint / "modeling_showattend.py").write_text("raise RuntimeError('code of somebody else')")
    (checkpoint / "notes.txt").write_text("mine")
    address = push(checkpoint)
    repo = hub.repos["someone/tiny"]
    assert repo.messages == ["initial commit", "Upload captioner"]
    assert address == f"{hub.url}/someone/tiny/commit/{repo.branches['main']}"
    files = repo.files()
    assert files.keys() == IN_REPOSITORY
    for name in IN_REPOSITORY - {"README.md", ".gitattributes"}:
        source = ROOT / "modeling_showattend" if name.endswith(".py") else checkpoint
        assert files[name] == (source / name).read_bytes()
    assert b"# tiny" in files["README.md"] and b"Nothing has been measured yet." in files["README.md"]


def test_a_second_upload(hub: Hub, checkpoint: Path) -> None:
    push(checkpoint, private=True)
    repo = hub.repos["someone/tiny"]
    assert repo.private
    repo.commit("main", repo.files() | {"README.md": b"---\nlicense: mit\n---\nMine."}, "Describe it")
    config = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").write_text(json.dumps(config | {"num_beams": 3}))
    push(checkpoint, revision="beams", commit_message="Search with three beams", private=True)
    assert repo.messages[-1] == "Search with three beams"
    assert b"num_beams" not in repo.files("main")["generation_config.json"]
    assert b'"num_beams": 3' in repo.files("beams")["generation_config.json"]
    assert repo.files("beams")["README.md"].endswith(b"Mine.")  # a generated card does not replace a written one
    assert sum(request.startswith("PUT") for request in hub.requests) == 1  # the weights are there already

    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nNew.")
    push(checkpoint)
    assert repo.files()["README.md"].endswith(b"New.")


def test_the_cards_images_travel(hub: Hub, checkpoint: Path) -> None:
    card = checkpoint / "README.md"
    card.write_text(
        "---\nlicense: mit\n---\n![a dog](docs/photos/dog.webp) [paper](https://arxiv.org/abs/1502.03044)\n"
    )
    (checkpoint / "docs" / "photos").mkdir(parents=True)
    shutil.copy(IMAGES[0], checkpoint / "docs" / "photos")
    push(checkpoint)
    files = hub.repos["someone/tiny"].files()
    assert files.keys() == IN_REPOSITORY | {"docs/photos/dog.webp"}
    assert files["docs/photos/dog.webp"] == IMAGES[0].read_bytes()
    assert files["README.md"] == card.read_bytes()

    for link in ("gone.png", "config.json", "../checkpoint/docs/photos/dog.webp", str(IMAGES[0]), "docs/photos"):
        card.write_text(f"[this]({link})")
        with pytest.raises(ValueError, match=rf"README\.md links to {link}, which is not an image in"):
            files_to_share(checkpoint, "someone/tiny")


@pytest.mark.skipif(not DEFAULT_CHECKPOINT.is_dir(), reason=f"{DEFAULT_CHECKPOINT} is not there")
def test_the_published_checkpoint_can_be_shared() -> None:
    files = files_to_share(DEFAULT_CHECKPOINT, "someone/tiny")
    assert files["README.md"] == DEFAULT_CHECKPOINT / "README.md"
    assert any(path.endswith((".gif", ".png", ".webp")) for path in files), "the card shows no figure"


def test_what_transformers_uploads(hub: Hub, checkpoint: Path) -> None:
    """push_to_hub of model, processor and pipeline."""
    model, processor = load_captioner(checkpoint)
    model.push_to_hub("tiny")  # type: ignore[arg-type]
    processor.push_to_hub("tiny", commit_message="Add the processor")
    messages = hub.repos["someone/tiny"].messages
    assert len(messages) == 3 and messages[2] == "Add the processor"
    ImageCaptioningPipeline(model=model, processor=processor).push_to_hub("whole")
    assert len(hub.repos["someone/whole"].messages) == 2
    for repo_id in ("someone/tiny", "someone/whole"):
        files = hub.repos[repo_id].files()
        assert files.keys() == IN_REPOSITORY
        same = {name for name in FILES if files[name] == (checkpoint / name).read_bytes()}
        assert same >= FILES - {"tokenizer_config.json"}  # the tokenizer adds where it was loaded from


def test_refusals_of_the_hub(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = files_to_share(checkpoint, "someone/tiny")
    with pytest.raises(OSError, match=r"Nothing was published as other/tiny: .*rights .* namespace 'other'"):
        share(files, "other/tiny")
    share(files, "someone/tiny")
    with pytest.raises(ValueError, match="someone/tiny exists and is public"):
        share(files, "someone/tiny", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(OSError, match="Nothing was published as someone/new: the Hub does not know your token"):
        share(files, "someone/new")
    with pytest.raises(OSError, match=r"someone/tiny could not be loaded from the Hub: .*Invalid credentials"):
        load_captioner("someone/tiny")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="You are not logged in to the Hub"):
        share(files, "someone/new")
    assert hub.repos.keys() == {"someone/tiny"}
    with pytest.raises(OSError, match=r"someone/new could not be loaded from the Hub: .*not a valid model identifier"):
        load_captioner("someone/new")

    nowhere = "http://127.0.0.1:1"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/{filename}")
    with pytest.raises(OSError, match=f"the connection to {nowhere} failed .*refused"):
        share(files, "someone/tiny")
    with pytest.raises(OSError, match="someone/tiny could not be loaded from the Hub: We couldn't connect"):
        load_captioner("someone/tiny")


def test_broken_connections(hub: Hub, checkpoint: Path) -> None:
    hub.cut_uploads = 1000
    with pytest.raises(OSError, match=r"Nothing was published as someone/tiny: .*'model\.safetensors'.*disconnected"):
        push(checkpoint)
    assert hub.cut_uploads < 1000
    assert hub.repos["someone/tiny"].messages == ["initial commit"] and not hub.blobs
    hub.cut_uploads = 1  # the client tries again by itself
    push(checkpoint)
    assert hub.repos["someone/tiny"].files().keys() == IN_REPOSITORY

    hub.cut_downloads = 1000
    with pytest.raises(OSError, match=r"someone/tiny could not be downloaded \(peer closed connection .*try again"):
        load_captioner("someone/tiny")
    hub.cut_downloads = 1
    model, _ = load_captioner("someone/tiny")
    expected = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_pickles_are_neither_sent_nor_read(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    push(checkpoint)
    for content in (pickle.dumps(Bomb()), b"tensors"):
        if content == b"tensors":
            torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
        else:
            (checkpoint / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"holds pytorch_model\.bin, a pickle"):
            files_to_share(checkpoint, "someone/tiny")
        repo = hub.repos["someone/tiny"]
        with_pickle = repo.files() | {"pytorch_model.bin": (checkpoint / "pytorch_model.bin").read_bytes()}
        del with_pickle["model.safetensors"]
        repo.commit("main", with_pickle, "Replace the weights by a pickle")
        (checkpoint / "model.safetensors").rename(tmp_path / "aside")
        for source in (str(checkpoint), "someone/tiny"):
            expected = rf"{source} has no model\.safetensors, and other weights are not read, because a pickle can run"
            with pytest.raises(OSError, match=expected):
                load_captioner(source)
            with pytest.raises(OSError, match=expected):
                ShowAttendForConditionalGeneration.from_pretrained(source, use_safetensors=False)
        (tmp_path / "aside").rename(checkpoint / "model.safetensors")
        repo.commit("main", with_pickle | {"model.safetensors": b""}, "Prepare the next")
    assert not any("pytorch_model.bin" in request for request in hub.requests)
    assert not Path("exploded").exists()


def test_what_is_not_a_complete_captioner(checkpoint: Path) -> None:
    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            files_to_share(checkpoint, "someone/tiny")

    with pytest.raises(ValueError, match="Repo id must"):
        files_to_share(checkpoint, "some one/tiny")
    with pytest.raises(OSError, match=r"There is no checkpoint folder .*nowhere"):
        files_to_share(checkpoint / "nowhere", "someone/tiny")
    optimizer = checkpoint / "state" / "optimizer.bin"
    optimizer.parent.mkdir()
    optimizer.write_bytes(b"")
    refused(ValueError, r"holds optimizer\.bin, a pickle")
    optimizer.unlink()
    weights = load_file(checkpoint / "model.safetensors")
    lost = weights.pop("decoder.fcn.bias")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    refused(OSError, r"its weights are not those of its config, which differ in decoder\.fcn\.bias")
    save_file(
        weights | {"decoder.fcn.bias": lost, "more": lost.clone()}, checkpoint / "model.safetensors", {"format": "pt"}
    )
    refused(OSError, "which differ in more")
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "processor_config.json").unlink()
    refused(ValueError, r"is incomplete: it has no processor_config\.json, tokenizer\.json")


def test_dry_run_and_mistakes(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(*arguments: object) -> tuple[int, str, str]:
        return run_command("push-to-hub", *arguments), *capsys.readouterr()

    code, out, _ = script(checkpoint, "someone/tiny", "--dry-run")
    assert code == 0 and not hub.requests
    lines = [line.split() for line in out.splitlines()]
    assert {path for _, path, *_ in lines[:-1]} == FILES | {"README.md"}
    sizes = {path: int(size.replace(",", "")) for size, path, *_ in lines}
    assert sizes["model.safetensors"] == (checkpoint / "model.safetensors").stat().st_size
    assert sizes.pop("bytes") == sum(sizes.values())

    code, out, err = script(checkpoint.parent / "nowhere", "someone/tiny")
    assert (code, out, err) == (2, "", f"error: There is no checkpoint folder {checkpoint.parent / 'nowhere'}.\n")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, out, err = script(checkpoint, "someone/tiny")
    assert (code, out) == (1, "") and err.startswith("error: Nothing was published as someone/tiny: the Hub does not")
    assert not hub.repos


CAPTION = """
def captions(**kwargs):
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, **options, **kwargs)
    processor = transformers.AutoProcessor.from_pretrained(folder, **options, **kwargs)
    return caption(model, processor)

seen["main"] = captions()
seen["pipeline"] = pipeline(model=folder, **options)(paths, max_length=12)
try:
    captions(revision="second")
except Exception as error:
    seen["second"] = str(error)
seen["code of main"] = captions(revision="second", code_revision=sys.argv[3])
"""


def test_from_one_process_to_another(
    hub: Hub,
    checkpoint: Path,
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    tmp_path: Path,
) -> None:
    """The script uploads; then a process without this package captions, from two revisions."""
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    command = [sys.executable, str(SCRIPT), str(checkpoint), "someone/tiny", "--commit-message", "First"]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["someone/tiny"]
    first = repo.branches["main"]
    assert done.stdout == f"{hub.url}/someone/tiny/commit/{first}\n"
    assert repo.messages == ["initial commit", "First"]

    # The second revision has other weights, and code that cannot be used.
    second = tmp_path / "second"
    shutil.copytree(checkpoint, second)
    make_model(seed=5).save_pretrained(second)
    push(second, revision="second")
    repo.commit("second", repo.files("second") | {"modeling_showattend.py": b"raise OSError('second code')"}, "Break")

    expected = [in_process(folder, IMAGES) for folder in (checkpoint, second)]
    assert expected[0]["captions"] != expected[1]["captions"]
    (tmp_path / "elsewhere").mkdir()
    names = os.pathsep.join(map(str, IMAGES))
    seen = run(CAPTION, "someone/tiny", names, first, cwd=tmp_path / "elsewhere", **variables)
    check_same(seen["main"], expected[0]["captions"])
    assert [[output["generated_text"] for output in outputs] for outputs in seen["pipeline"]] == [
        [text] for text in expected[0]["greedy"]
    ]
    assert seen["second"] == "second code"
    check_same(seen["code of main"], expected[1]["captions"])


def check_same(seen: Json, expected: Json) -> None:
    assert [seen[name] for name in ("greedy", "beams", "prefix")] == [
        expected[name] for name in ("greedy", "beams", "prefix")
    ]
    assert seen["logits"] == pytest.approx(expected["logits"], rel=1e-4, abs=1e-5)
