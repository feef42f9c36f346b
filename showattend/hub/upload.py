"""A captioner on the Hub: all that it takes to load and use it, uploaded in one commit."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import HfHubHTTPError, validate_repo_id

import modeling_showattend
from showattend.checkpoints import load_captioner

from .model_card import local_links, new_card

# What `save_pretrained` of model and processor writes, but for the code: it is this package's that travels, with which
# the checkpoint has been tried, and not what may lie in the folder.
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
PICTURES = {".gif", ".jpeg", ".jpg", ".png", ".webp"}


def files_to_share(checkpoint: str | Path, repo_id: str) -> dict[str, Path | bytes]:
    """All that makes a repository of a captioner complete, once the captioner has been loaded as a trial.

    Args:
        checkpoint: The captioner's folder. Its `README.md`, with the pictures it shows, becomes the model card; where
            there is none, a card is made that says what the config says.
        repo_id: The repository's name, for that card.

    Returns:
        Path in the repository -> file, or what is to stand in it.

    Raises:
        OSError: If there is no such folder, or no captioner in it that can be loaded.
        ValueError: If the repository's name is invalid, the folder is incomplete or holds a pickle, or its card links
            to what cannot travel.
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
    card = folder / "README.md"
    if not card.is_file():
        return files | {card.name: new_card(model.config, repo_id).encode()}
    for link in local_links(card.read_text()):
        picture = folder / link
        outside = Path(link).is_absolute() or ".." in Path(link).parts
        if outside or picture.suffix not in PICTURES or not picture.is_file():
            raise ValueError(
                f"{card} links to {link}, which is no picture in {folder} and so would be missing on the Hub: use the "
                "full address, or leave it out."
            )
        files[link] = picture
    return files | {card.name: card}


def share(
    files: dict[str, Path | bytes],
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload captioner",
) -> str:
    """Upload to the Hub, as one commit: the repository changes in the end, or not at all.

    Args:
        files: What [`files_to_share`] gives.
        repo_id: `user/name`, or a name in the user's own account; made if absent.
        private: Whether a new repository is to be hidden from others.
        revision: The branch; made if absent.
        commit_message: Its first line.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the repository exists and is public, but was to be private.
        OSError: If there is no token, or the Hub refuses or cannot be reached.
    """
    if get_token() is None:
        raise OSError(
            "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    api = HfApi(library_name="modeling-showattend")
    failure = f"Nothing was published as {repo_id}:"
    try:
        return _upload(api, files, repo_id, private, revision, commit_message)
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise OSError(f"{failure} the Hub does not know your token; log in anew with `hf auth login`.") from error
        raise OSError(f"{failure} {' '.join(str(error).split())}") from error
    except ValueError:
        raise
    except Exception as error:  # of a dozen types, from the library that carries the bytes
        reasons = dict.fromkeys(str(reason) for reason in (error, error.__cause__) if reason is not None)
        raise OSError(f"{failure} the connection to {api.endpoint} failed ({' '.join(reasons)}); try again.") from error


def _upload(
    api: HfApi, files: dict[str, Path | bytes], repo_id: str, private: bool, revision: str | None, commit_message: str
) -> str:
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public: leave --private out, or make it private on the Hub first.")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    # A card that was made here must not take the place of one that somebody wrote there.
    if isinstance(files["README.md"], bytes) and api.file_exists(repo_id, "README.md", revision=revision):
        files = {path: file for path, file in files.items() if path != "README.md"}
    # Not upload_folder, which may commit what has arrived and then the rest.
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(path, file) for path, file in files.items()],
        commit_message=commit_message,
        revision=revision,
    )
    return commit.commit_url
