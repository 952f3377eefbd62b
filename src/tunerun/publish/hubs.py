"""Uploads to Hugging Face and ModelScope through their own clients; files that are there already are not sent again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunerun.config.schema import PublishConfig
from tunerun.errors import StageError, require
from tunerun.progress import Progress
from tunerun.publish.files import File

_MODELSCOPE_BRANCH = "master"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """What an upload did."""

    url: str
    """Of the repository."""
    commit: str | None
    """That made the files visible; None when all were there."""
    uploaded: tuple[str, ...]
    """Names of the files that were not there as they are."""


class Uploader(Protocol):
    """Uploads files to the repository that a config names."""

    def __call__(self, publish: PublishConfig, files: Sequence[File], message: str) -> Upload:
        """Makes the repository and branch where needed, and uploads what is not there.

        Raises:
            StageError: The hub refuses, or cannot be reached.
        """


def upload_huggingface(publish: PublishConfig, files: Sequence[File], message: str) -> Upload:
    """Uploads to Hugging Face, or to the hub at HF_ENDPOINT: all files become visible in one commit."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # Of httpx or httpx2, as its version has it.

    assert publish.repo is not None, "asked for by the plan"
    hub = huggingface_hub.HfApi(library_name="tunerun")
    try:
        hub.create_repo(publish.repo, private=publish.private, exist_ok=True)
        if publish.revision is not None:
            hub.create_branch(publish.repo, branch=publish.revision, exist_ok=True)
        there = _listed(hub, publish.repo, publish.revision)
        new = [file for file in files if there.get(file.name) not in (file.sha256, file.git_sha1)]
        commit = None
        if new:
            commit = _commit(hub, publish, new, message)
    # Faults of its HTTP client, such as of a network that is down, come through as they are.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise StageError(f"{hub.endpoint}/{publish.repo}: {_reason(error)}") from error
    return Upload(url=f"{hub.endpoint}/{publish.repo}", commit=commit, uploaded=tuple(file.name for file in new))


def upload_modelscope(publish: PublishConfig, files: Sequence[File], message: str) -> Upload:
    """Uploads to ModelScope, file by file, the model card last: until then the repository has none."""
    client = require("modelscope_hub.api", "hub").HubApi()
    faults: Any = require("modelscope_hub.errors", "hub").HubError
    assert publish.repo is not None, "asked for by the plan"
    try:
        if not client.repo_exists(publish.repo, "model"):
            client.create_repo(publish.repo, "model", visibility="private" if publish.private else "public")
        _require_branch(client, publish.repo, publish.revision)
        listed = client.list_repo_files(publish.repo, "model", revision=publish.revision)
        there = {item.path: item.sha256 for item in listed if not item.is_dir}
        new = [file for file in files if there.get(file.name) != file.sha256]
        with Progress("publish", total=sum(file.bytes for file in new), unit="bytes") as progress:
            # The first file is the card.
            for file in [*new[1:], *new[:1]]:
                client.upload_file(
                    publish.repo,
                    "model",
                    str(file.path),
                    file.name,
                    commit_message=message,
                    revision=publish.revision,
                    disable_tqdm=True,
                )
                progress.advance(file.bytes)
    except (faults, OSError) as error:
        raise StageError(f"ModelScope, {publish.repo}: {_reason(error)}") from error
    url = f"https://www.modelscope.cn/models/{publish.repo}"
    return Upload(url=url, commit=None, uploaded=tuple(file.name for file in new))


def _require_branch(client: Any, repo: str, branch: str | None) -> None:
    """Refuses a branch that is not there: ModelScope's client makes tags only."""
    if branch in (None, _MODELSCOPE_BRANCH):
        return
    there = sorted({_MODELSCOPE_BRANCH, *(item["Revision"] for item in client.list_repo_revisions(repo, "model"))})
    if branch not in there:
        fix = f"Make it there (git push origin HEAD:{branch}), or set publish.revision=null."
        raise StageError(f"ModelScope, {repo}: there is no branch {branch}; there is {', '.join(there)}. {fix}")


UPLOADERS: Mapping[str, Uploader] = {"hf": upload_huggingface, "modelscope": upload_modelscope}


def _listed(hub: Any, repo: str, revision: str | None) -> dict[str, str]:
    """Returns the digest by which the hub knows each file."""
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        found = list(hub.list_repo_tree(repo, recursive=True, revision=revision))
    except RemoteEntryNotFoundError:
        # A repository without a commit.
        return {}
    files = [item for item in found if isinstance(item, RepoFile)]
    return {item.path: item.lfs.sha256 if item.lfs is not None else item.blob_id for item in files}


def _commit(hub: Any, publish: PublishConfig, files: Sequence[File], message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file.path)) for file in files]
    with Progress("publish", total=sum(file.bytes for file in files), unit="bytes") as progress:
        for file, operation in zip(files, operations, strict=True):
            # Large files stay on the hub without a commit, so that a second try goes on from there.
            hub.preupload_lfs_files(publish.repo, [operation], revision=publish.revision)
            progress.advance(file.bytes)
    made = hub.create_commit(publish.repo, operations, commit_message=message, revision=publish.revision)
    return str(made.oid)


def _reason(error: BaseException) -> str:
    """Returns an error's message on one line, that of its cause with it."""
    texts = [" ".join(str(item).split()) for item in (error, error.__cause__) if item is not None]
    return ": ".join(dict.fromkeys(text.rstrip(".") for text in texts if text)) + "."
