"""A run of Weights & Biases for each run folder: its rows while it works, and its report's numbers and pictures.

Process 0 sends them, and they do not affect results. Only this file uses wandb.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, write_json

FILE = "wandb.json"  # in a run folder: the id of its run, and the last step that was sent of each stage
NOT_RESULTS = ("name", "workdir", "run")  # parts of a report that are about the job


def check_installed() -> None:
    """Raise InputError if wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb takes a package that is not installed: pip install -e '.[wandb]'")


class WandbRun:
    """An open run of Weights & Biases. `file` holds its id and what was sent, so a continued run goes on with it."""

    def __init__(self, run: Any, file: AnyPath) -> None:
        self._run, self._file = run, file
        self._sent: dict[str, int] = _known(file).get("sent", {})

    def rows(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Send the rows of a stage that were not sent before.

        rows: all rows so far, {"step": …, NAME: VALUE, …}. A value is sent as STAGE/NAME, over STAGE/step.
        """
        new = [row for row in rows if row["step"] > self._sent.get(stage, -1)]
        if not new:
            return
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        for row in new:
            self._run.log({f"{stage}/{name}": value for name, value in row.items()})
        self._sent[stage] = new[-1]["step"]
        self.remember()

    def remember(self) -> None:
        """Write `file`."""
        write_json(self._file, {"id": self._run.id, "sent": self._sent})

    def report(self, contents: Mapping[str, Any], pictures: Sequence[AnyPath]) -> None:
        """Send a report's numbers as the run's summary, by their places (estimate/value_bits), and the pictures."""
        from PIL import Image
        from wandb import Image as Picture

        results = {key: value for key, value in contents.items() if key not in NOT_RESULTS}
        self._run.summary.update(dict(_numbers("", results)))
        drawn = {}
        for path in pictures:
            with path.open("rb") as file, Image.open(file) as image:
                drawn[f"figures/{path.stem}"] = Picture(image.convert("RGB"))
        self._run.log(drawn)


@contextmanager
def wandb_run(folder: AnyPath, config: Mapping[str, Any]) -> Iterator[WandbRun]:
    """Open the run of a run folder, and close it at the end; after a success its report is sent first.

    Raises InputError if Weights & Biases refuses the run, as without a login.
    """
    import wandb

    file = folder / FILE
    with tempfile.TemporaryDirectory() as elsewhere:  # wandb takes no bucket; what it keeps there is sent at the end
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mirigor_jax"),
                id=_known(file).get("id"),
                name=folder.name,
                config=dict(config),
                dir=elsewhere if "://" in str(folder) else str(folder),
                resume="allow",
                allow_val_change=True,
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise InputError(
                f"Weights & Biases refused the run ({error}); run `wandb login`, set WANDB_MODE=offline, or leave out "
                "--wandb"
            ) from None
        code = 1
        try:
            opened = WandbRun(run, file)
            opened.remember()
            yield opened
            opened.report(json.loads((folder / "report.json").read_text()), sorted(folder.glob("figures/*.png")))
            code = 0
        finally:
            run.finish(exit_code=code)


def _known(file: AnyPath) -> dict[str, Any]:
    """What `file` holds; nothing if it is not there or cut off."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _numbers(place: str, value: Any) -> Iterator[tuple[str, float]]:
    """(place, number) of every number below `value`; lists are left out."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbers(f"{place}/{key}" if place else str(key), below)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, float(value)
