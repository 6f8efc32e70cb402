"""Repositories of the Hugging Face Hub, named `hf:REPO[@REVISION][:PART]`: their commit, their files, local copies.

Only this file uses huggingface_hub. The package keeps downloads in its own cache (HF_HOME), takes the token of
`hf auth login` or HF_TOKEN, and asks the server that HF_ENDPOINT names. What is in the cache is read without a network.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import AnyPath, to_path

PREFIX = "hf:"
Kind = Literal["model", "dataset"]
NEEDS = "takes huggingface_hub: pip install -e '.[hf]'"
NAME = re.compile(r"hf:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@:]+))?(?::(?P<part>.+))?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """What a name on the Hub says.

    repo: OWNER/NAME.
    revision: a branch, a tag or a commit. None: the main branch.
    part: a file of a model, or a configuration of a data set. "": the name has none.
    """

    repo: str
    revision: str | None
    part: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    kind: "model" or "dataset".
    name: hf:OWNER/NAME[@REVISION], for messages.
    repo: OWNER/NAME.
    commit: the commit's hash, 40 hexadecimal digits.
    files: the paths of all files in the repository, sorted.
    """

    kind: Kind
    name: str
    repo: str
    commit: str
    files: tuple[str, ...]

    def fetch(self, names: Sequence[str]) -> Path:
        """Download these files, if they are not in the cache yet. Returns the folder that they are in, by their paths.

        Raises InputError if one can't be fetched.
        """
        with _in_words(self.name, self.kind, self.repo):
            return _snapshot(self.kind, self.repo, self.commit, [glob.escape(name) for name in names])


def is_hub(text: str) -> bool:
    """Whether the text names a repository on the Hub."""
    return text.startswith(PREFIX)


def parse(name: str) -> Reference:
    """The repository, the revision and the part that a name has. Raises InputError if it is no such name."""
    if (match := NAME.fullmatch(name)) is None:
        raise InputError(f"'{shown(name)}' is no repository on the Hub: give hf:OWNER/NAME, hf:OWNER/NAME@REVISION")
    return Reference(match["repo"], match["revision"], match["part"] or "")


def repository(name: str, kind: Kind) -> Repository:
    """The repository that a name has.

    A process asks once which commit a revision is, so all files that it reads are of one commit.
    Raises InputError if huggingface_hub is not installed, if there is no such repository or revision, if this user may
    not read it, and if the Hub can't be reached and the cache has no listing of it.
    """
    reference = parse(name)
    return _repository(kind, reference.repo, reference.revision)


def commit_of(name: str, kind: Kind) -> str:
    """The hash of the commit that a name has today. Raises InputError as `repository` does."""
    return repository(name, kind).commit


def path_of(text: str) -> AnyPath:
    """The path that a user names: a local one, one in a bucket, or hf:REPO:FILE, a file of a data set on the Hub.

    The file is downloaded. Raises InputError as `repository` and `files.to_path` do, and if there is no such file.
    """
    if not is_hub(text):
        return to_path(text)
    file, found = parse(text).part, repository(text, "dataset")
    if file not in found.files:
        raise InputError(f"'{text}' names no file of the repository; give {of_files('hf:REPO:FILE', found.files)}")
    return found.fetch([file]) / file


def card(path: Path) -> dict[str, Any]:
    """The YAML at the head of a repository's README.md; empty without one. YAML raises its own errors."""
    from huggingface_hub import metadata_load

    head = metadata_load(path)
    return head if isinstance(head, dict) else {}


def of_files(wanted: str, files: Sequence[str]) -> str:
    """Words for a message: what is wanted, and the first few files of a repository."""
    first = ", ".join(shown(file, 80) for file in files[:6])
    return f"{wanted}, with one of {first}{', …' if len(files) > 6 else ''}" if files else f"{wanted}; it has no file"


@cache
def _repository(kind: Kind, repo: str, revision: str | None) -> Repository:
    name = f"{PREFIX}{repo}" + ("" if revision is None else f"@{revision}")
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"'{name}' is on the Hugging Face Hub, which {NEEDS}") from None

    with _in_words(name, kind, repo):
        commit = huggingface_hub.HfApi().resolve_revision(repo, repo_type=kind, revision=revision).resolved
        _snapshot(kind, repo, commit, [".gitattributes"])  # a small file; the list of all files is kept too
        tree = huggingface_hub.get_cached_repo_tree(repo, repo_type=kind, revision=commit)
    # A path that leads out of the repository's folder is no file of it.
    files = sorted(file.path for file in tree if not {"", ".", ".."} & {*file.path.split("/")})
    return Repository(kind, name, repo, commit, tuple(files))


def _snapshot(kind: Kind, repo: str, commit: str, patterns: Sequence[str]) -> Path:
    import huggingface_hub

    return Path(huggingface_hub.snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=[*patterns]))


@contextmanager
def _in_words(name: str, kind: Kind, repo: str) -> Iterator[None]:
    """Within this context, an error of huggingface_hub becomes an InputError in one line."""
    from huggingface_hub import constants, errors

    title, words = f"'{shown(name)}'", "data set" if kind == "dataset" else kind
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    log_in = "log in by `hf auth login`, or set HF_TOKEN"
    download = f"`hf download {repo}{' --repo-type=dataset' if kind == 'dataset' else ''}`"
    try:
        yield
    except errors.GatedRepoError:
        raise InputError(f"{title} is gated: accept its conditions on {page}, then {log_in}") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{title}: {page} has no such revision; give a branch, a tag or a commit of it") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{title}: there is no {words} {page}, or it is private; correct the name, or {log_in}"
        ) from None
    except errors.DisabledRepoError:
        raise InputError(f"{title}: {page} is disabled; give another {words}") from None
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError):
        raise InputError(
            f"{title}: {constants.ENDPOINT} cannot be reached, and the cache {constants.HF_HUB_CACHE} does not hold it "
            f"whole; run {download} on a machine with a network, and copy its cache here"
        ) from None
    except errors.HFValidationError:
        raise InputError(f"{title} is no repository on the Hub: give hf:OWNER/NAME") from None
    except errors.HfHubHTTPError as error:
        status: Any = error.response.status_code
        fix = f"the token is refused: {log_in}" if status in (401, 403) else "try again later"
        raise InputError(f"{title}: {page} answers {status}; {fix}") from None
    except InputError:
        raise
    except Exception as error:  # of the network or of the disk; each version of the client raises its own types
        reason = " ".join([type(error).__name__, *str(error).split()])
        raise InputError(f"{title} cannot be fetched from {page} ({shown(reason, 300)}); try again") from None
