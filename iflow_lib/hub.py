"""Models on a hub: the files of ``save_pretrained``, sent and fetched by huggingface_hub.

Only ``model.safetensors``, ``config.json`` and the card are ever fetched: no pickle, and no code. A
name is resolved to one commit before anything is read, so that all files are of one moment.

huggingface_hub's mixin does the work, on an object of its own: a ``FlowMap`` that inherited from it
would need the package always, and the mixin for PyTorch falls back on pickle where a repository
holds no safetensors.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from .registry import first_line

#: All that is fetched of a repository.
FILES = ("config.json", "model.safetensors", "README.md")
#: A repository of a hub: its owner and its name.
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: A whole commit.
COMMIT = re.compile(r"[0-9a-f]{40}")
#: How a model is sampled, by what it learned.
LEARNED = {
    "jump": "jumps between any two times: one network call makes a sample, a few more refine it",
    "jump_to_data": "jumps to the data: one network call makes a sample",
    "velocity": "a velocity, which a solver follows: some 30 network calls make a sample",
    "refinement": "to refine an estimate of the data, its anchor",
}
#: What the card of a table or series says of its privacy.
VALUES = (
    "`config.json` holds values that were observed in the data, which decoding needs: who may read this "
    "repository may read them."
)


def local_folder(
    folder: str | PathLike[str], revision: str | None = None, token: str | None = None
) -> str | PathLike[str]:
    """Return the folder of a model, which is fetched where a name ``user/model`` is given.

    Args:
        folder: A folder, or the name of a repository. A folder that is here comes first.
        revision: A commit, tag or branch of the repository. A whole commit that was fetched before
            is not asked for again, and needs no network. None takes the newest commit, and a
            warning names it.
        token: For a private repository; None takes the one that ``hf auth login`` keeps.

    Returns:
        The folder.

    Raises:
        ValueError: If a revision is given for a folder that is here, or the repository holds no
            such model.
        ImportError: If huggingface_hub is missing.
        OSError: If the hub cannot be reached, or there is no such repository or revision.
    """
    remote = isinstance(folder, str) and NAME.fullmatch(folder) and not Path(folder).exists()
    if not remote:
        if revision is not None:
            raise ValueError(
                f"{folder} is a folder and has no revisions: leave revision out, or give user/model"
            )
        return folder
    name = str(folder)
    _need_hub(f"{name} is no folder here, and to look on a hub")
    from huggingface_hub import HfApi

    try:
        commit = revision
        if commit is None or not COMMIT.fullmatch(commit):
            commit = HfApi(token=token).model_info(name, revision=revision).sha
        found = _shared().from_pretrained(name, revision=commit, token=token).folder
    except Exception as error:  # of its own, or of the network's, in each version others
        at = "" if revision is None else f" at {revision}"
        raise OSError(
            f"{name} is no folder here, and could not be fetched from the hub{at}: "
            f"{first_line(error)[:200]}"
        ) from error
    lacks = [file for file in FILES[:2] if not (found / file).is_file()]
    if lacks:
        raise ValueError(
            f"{name} holds no {' and no '.join(lacks)}: expected a model from push_to_hub; weights in other "
            "formats, such as pickle, are not read"
        )
    if revision is None:
        warnings.warn(
            f'took the newest commit of {name}: give revision="{commit}" to get this one again',
            UserWarning,
            stacklevel=3,
        )
    return found


def push(
    save: Callable[[Path], None],
    name: str,
    *,
    private: bool = True,
    token: str | None = None,
    branch: str | None = None,
    message: str = "Model from iflow_lib",
) -> str:
    """Send a model to a hub, in one commit.

    Args:
        save: Writes the model's files into a folder.
        name: The repository, ``user/model``; it is made if it is missing.
        private: Whether a new repository is seen by its owner alone.
        token: See ``local_folder``.
        branch: The branch; None is the main one.
        message: Of the commit.

    Returns:
        The address of the commit, which ends in its number, to be given as ``revision``.

    Raises:
        ValueError: If the name is none, or the model cannot be saved.
        ImportError: If huggingface_hub is missing.
        OSError: If the hub refuses, or cannot be reached.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f'a model is sent to a name such as "user/model", got {name!r}')
    _need_hub("to send a model to a hub")
    failed: list[Exception] = []

    def write(folder: Path) -> None:
        try:
            save(folder)
        except ValueError as error:  # about the model, not about the hub
            failed.append(error)
            raise

    try:
        sent = _shared(write).push_to_hub(
            name, private=private, token=token, branch=branch, commit_message=message
        )
    except Exception as error:
        if failed:
            raise failed[0] from None
        raise OSError(f"{name} could not be sent to the hub: {first_line(error)[:200]}") from error
    return str(getattr(sent, "commit_url", sent))


def _need_hub(what: str) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError(f'{what} needs huggingface_hub: pip install "iflow-lib[hub]"')


def _shared(save: Callable[[Path], None] | None = None) -> Any:
    """Return an object of huggingface_hub's mixin that saves by a function; its class fetches."""
    from huggingface_hub import ModelHubMixin, snapshot_download

    class Shared(ModelHubMixin):
        folder: Path

        def _save_pretrained(self, save_directory: Path) -> None:
            assert save is not None
            save(save_directory)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, revision: str | None, **options: Any) -> Shared:
            kept = {key: options[key] for key in ("cache_dir", "token") if key in options}
            shared = cls()
            shared.folder = Path(
                snapshot_download(model_id, revision=revision, allow_patterns=list(FILES), **kept)
            )
            return shared

    return Shared()


def card(
    name: str,
    facts: Mapping[str, Any],
    manifest: Mapping[str, Any] | None = None,
    *,
    use: str,
    notes: str = "",
    license: str | None = None,
) -> str:
    """Return a model card: what a model is, how it was trained, and how it is loaded.

    Args:
        name: The repository, ``user/model``.
        facts: What the model is, by name.
        manifest: Of its training, ``run.manifest``, or None.
        use: A line of Python that loads it, and one that samples it.
        notes: What else is to be said, in Markdown.
        license: Its licence by the hub's short name, such as "mit"; None leaves it open.

    Returns:
        Markdown, with the head that hubs read.
    """
    head = ["library_name: iflow_lib", "tags:", "- one-step-generation", "- flow-matching"]
    head += [f"license: {license}"] if license else []
    rows = {**facts, **({} if manifest is None else _training(manifest))}
    if manifest is None and "settings" not in facts:
        rows["training"] = "was not recorded with the model"
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    return (
        "---\n" + "\n".join(head) + f"\n---\n\n# {name}\n\n"
        f"| what | which |\n|---|---|\n{table}\n\n"
        f"```python\nimport iflow_lib as ifl\n\n{use}\n```\n\n"
        "A commit of this repository, given as `revision`, makes sure that it is this model again. "
        "Weights are safetensors, settings JSON.\n" + (f"\n{notes}\n" if notes else "")
    )


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _training(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the training, by name; what it lacks is left out."""
    data, config = manifest.get("data", {}), manifest.get("config", {})
    objective = dict(manifest.get("objective", {}))
    settings = ", ".join(f"{k}={v!r}" for k, v in objective.items() if k != "name")
    shape = data.get("shape") or [0]
    rows = {
        "data": f"{data.get('name')}, {shape[0]:,} examples of shape {tuple(shape[1:])}",
        "sha256 of the data": data.get("sha256"),
        "objective": f"`{objective.get('name')}({settings})`",
        "training": f"{manifest.get('steps_done', 0):,} steps of batch {config.get('batch_size')}, seed "
        f"{config.get('seed')}, {manifest.get('seconds', 0):.0f} seconds on {manifest.get('hardware')}",
        "versions": ", ".join(f"{k} {v}" for k, v in manifest.get("versions", {}).items()),
    }
    return {key: value for key, value in rows.items() if value}


def without_places(value: Any) -> Any:
    """Return a manifest without the folders of the machine that it was made on."""
    if isinstance(value, Mapping):
        return {k: "" if k == "out_dir" else without_places(v) for k, v in value.items()}
    return [without_places(v) for v in value] if isinstance(value, (list, tuple)) else value
