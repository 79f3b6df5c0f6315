"""Put an export on a hub of Hugging Face's kind."""

import pathlib
from collections.abc import Sequence
from typing import Any

from exit_jax.errors import ConfigError


def check(repo: str) -> None:
    """Raise ConfigError unless ``repo`` may be one and there is a token, before anything is exported."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push {repo}: {error}") from error
    if repo.count("/") != 1:
        raise ConfigError(f"--push {repo}: name an owner, too, as {(repo and f'me/{repo}') or 'me/model'}")
    if get_token() is None:
        raise ConfigError("--push: there is no token for the hub; run `hf auth login`, or set HF_TOKEN")


def push(folders: Sequence[pathlib.Path], repo: str, private: bool = True) -> str:
    """Upload an export, and adapters beside it into a folder ``adapter``; return the address of the repository.

    The repository is made if there is none; one that there is stays as visible as it was.

    Raises:
      ConfigError: if the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    whole, *adapters = folders
    # its bases are the errors of the HTTP client, which depends on the version
    faults: Any = (*HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        api = HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        for folder in (whole, *adapters):
            inside = None if folder is whole else folder.name
            api.upload_folder(
                repo_id=repo, folder_path=folder, path_in_repo=inside, commit_message="Export of exit_jax"
            )
    except faults as error:
        said = str(error).strip().splitlines()
        raise ConfigError(
            f"--push {repo}: {said[0] if said else type(error).__name__}; the export is in {whole}, and "
            f"`hf upload {repo} {whole}` pushes it later"
        ) from error
    return str(url)
