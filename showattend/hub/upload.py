"""Uploads a captioner to the Hub in one commit, with everything needed to load and use it."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError  # httpx's or httpx2's, whichever this version of huggingface_hub uses
from huggingface_hub.utils import HfHubHTTPError, validate_repo_id

import modeling_showattend
from showattend.checkpoints import load_captioner
from showattend.export.exported_files import exported_files

from .model_card import local_links, new_card

# What `save_pretrained` of model and processor writes, except the code: the installed package's code is uploaded, which
# has just loaded the checkpoint, not the folder's.
SAVED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
CODE = sorted(Path(modeling_showattend.__file__).parent.glob("*_showattend.py"))
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
IMAGES = {".gif", ".jpeg", ".jpg", ".png", ".webp"}


def files_to_share(checkpoint: str | Path, repo_id: str) -> dict[str, Path | bytes]:
    """Collect the files of a complete repository, after loading the captioner as a check.

    The folder's `README.md`, with the images it shows, becomes the model card; without one, [`new_card`] makes it.

    Returns:
        Path in the repository -> a file or its content.

    Raises:
        OSError: If there is no such folder, or it holds no captioner that can be loaded.
        ValueError: If the repository's name is invalid, the folder is incomplete or holds a pickle, its card links to
            a file that is not uploaded, or the export in its `onnx/` is incomplete or of other weights.
    """
    validate_repo_id(repo_id)
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no checkpoint folder {folder}.")
    if pickles := sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICKLES):
        raise ValueError(
            f"{folder} holds {pickles[0].name}, a pickle, which can run code on whoever loads it: remove it."
        )
    if absent := [name for name in SAVED if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is incomplete: it has no {', '.join(absent)}; save model and processor to it.")
    model, _ = load_captioner(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in SAVED}
    files |= {path.name: path for path in CODE}
    files |= {path.relative_to(folder).as_posix(): path for path in exported_files(folder)}
    card = folder / "README.md"
    if not card.is_file():
        return files | {card.name: new_card(model.config, repo_id).encode()}
    for link in local_links(card.read_text()):
        image = folder / link
        outside = Path(link).is_absolute() or ".." in Path(link).parts
        if outside or image.suffix not in IMAGES or not image.is_file():
            raise ValueError(
                f"{card} links to {link}, which is not an image in {folder} and would be missing on the Hub: use the "
                "full address, or leave it out."
            )
        files[link] = image
    return files | {card.name: card}


def share(
    files: dict[str, Path | bytes],
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload captioner",
) -> str:
    """Upload to the Hub in one commit: the repository changes completely or not at all.

    Args:
        files: What [`files_to_share`] gives.
        repo_id: `user/name`, or a name in the user's own account; created if absent, as is the branch `revision`.
        private: Whether a new repository is private; ValueError if it exists and is public.

    Returns:
        The commit's URL.

    Raises:
        OSError: If there is no token, or the Hub refuses or cannot be reached.
    """
    if get_token() is None:
        raise OSError(
            "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    api = HfApi(library_name="modeling-showattend")
    failure = f"Nothing was published as {repo_id}:"
    try:
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public: leave `private` out, or make it private on the Hub first."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # A generated card must not replace one written on the Hub.
        if isinstance(files["README.md"], bytes) and api.file_exists(repo_id, "README.md", revision=revision):
            files = {path: file for path, file in files.items() if path != "README.md"}
        # Not upload_folder, which may split the files over several commits.
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, file) for path, file in files.items()],
            commit_message=commit_message,
            revision=revision,
        )
        return commit.commit_url
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise OSError(f"{failure} the Hub does not know your token; log in again with `hf auth login`.") from error
        raise OSError(f"{failure} {' '.join(str(error).split())}") from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: huggingface_hub's and hf_xet's uploads
        reasons = dict.fromkeys(str(reason) for reason in (error, error.__cause__) if reason is not None)
        raise OSError(f"{failure} the connection to {api.endpoint} failed ({' '.join(reasons)}); try again.") from error
