"""Lists packages on the Hugging Face hub. huggingface_hub knows endpoint, token and cache; edged fetches the files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edged.engine.session import one_line
from edged.models.listing import Digest, Listing, SourceError, SourceFile, listing
from edged.models.web import Remote, explain

_SOURCE = re.compile(r"hf:([\w.-]+)/([\w.-]+)((?:/[^/@]+)*)/?(?:@([\w./-]+))?", re.ASCII)


_MEANT = {
    401: ": it refuses the token; set HF_TOKEN to a valid one, or unset it for what everybody may read",
    403: ": the token in HF_TOKEN may not read {repository}",
    429: ": too many requests; try again in some minutes",
}


def open_hub(source: str) -> Listing:
    """List `hf:OWNER/REPO/path/in/repo@revision` at the current commit of the revision (default: main).

    Honours HF_ENDPOINT, HF_HOME (token and cache), HF_TOKEN and the library's other variables. Raises SourceError.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise SourceError(f"{source}: write hf:OWNER/REPO/folder@revision, with a tag or a commit", bad_use=True)
    owner, name, path, revision = match[1], match[2], match[3].strip("/"), match[4] or "main"
    try:
        from huggingface_hub import HfApi, errors, get_token, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.hf_api import RepoFile
    except ModuleNotFoundError:
        raise SourceError("hf: needs huggingface_hub: pip install 'edged[hub]'", bad_use=True) from None
    repository, api, token = f"{owner}/{name}", HfApi(), get_token()
    try:
        commit = api.model_info(repository, revision=revision).sha
        tree = api.list_repo_tree(repository, path or None, revision=commit, recursive=True)
        entries = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    except errors.GatedRepoError:
        raise SourceError(f"{repository} wants its terms accepted on the hub, and HF_TOKEN set") from None
    except errors.RepositoryNotFoundError:
        raise SourceError(f"the hub has no {repository}; a private one needs HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise SourceError(f"{repository} has no revision {revision}") from None
    except errors.EntryNotFoundError:
        raise SourceError(f"{repository} has no folder {path or '/'} at {revision}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        why = _MEANT.get(status, "").format(repository=repository)
        raise SourceError(f"the hub at {api.endpoint} answers {status}{why}") from None
    except Exception as error:  # which HTTP library huggingface_hub uses depends on its version
        cause = _cause(error)
        why = str(explain(cause, api.endpoint)) if cause else one_line(error)
        raise SourceError(f"the hub cannot be asked: {why}") from None

    def make(inside: str) -> SourceFile:
        entry = entries[f"{path}/{inside}" if path else inside]
        # The hub has the SHA-256 of large files, and git's hash of small ones.
        digest = Digest("sha256", entry.lfs.sha256) if entry.lfs else Digest("git-sha1", entry.blob_id)
        size = entry.lfs.size if entry.lfs else entry.size
        cached = try_to_load_from_cache(repository, entry.path, revision=commit)
        if isinstance(cached, str):
            return SourceFile(inside, size, digest, Path(cached).open("rb"))
        url = hf_hub_url(repository, entry.path, revision=commit)
        return SourceFile(inside, size, digest, Remote(url, {"Authorization": f"Bearer {token}"} if token else {}))

    def paths() -> Iterator[str]:
        return (entry[len(path) :].lstrip("/") for entry in entries)

    plain = f"hf:{repository}{'/' if path else ''}{path}@{commit}"
    return listing(plain, name, ((inside, make) for inside in paths()))


def _cause(error: BaseException | None) -> OSError | None:
    """The network's own error beneath those of the libraries."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
