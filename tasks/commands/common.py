"""What all commands share: the group, the common options, and how an error ends."""

from __future__ import annotations

import time

STARTED = time.time()

import errno  # noqa: E402 (the clock above also sees the imports)
import json  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import click  # noqa: E402

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError  # noqa: E402
from feature_jobs.schema import Scenario, load_scenario  # noqa: E402
from tasks.run.modes import LAUNCHABLE, SETTING  # noqa: E402
from tasks.store.scenario_store import ScenarioStore, open_store  # noqa: E402

EPILOG = (
    "Exit codes: 0 done; 1 a defect of Recloop; 2 wrong command line; 3 a gate said no; 4 bad input: scenario or data "
    "must change; 5 another day or step must be committed first; 6 try again later."
)


_CHANGE = (BadInputError, "choose another path or change its rights")
_MAKE_ROOM = (RetryLaterError, "make room; the same command then goes on")
REMEDIES: dict[int | None, tuple[type[RecloopError], str]] = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EROFS), _CHANGE),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _MAKE_ROOM),
}
"""What an operating system's no means: the error that it counts as, and what to do."""


class Commands(click.Group):
    """Ends expected errors with one message on stderr and their exit code; shows the steps in the order of the day."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of definition."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except RecloopError as error:
            click.secho(f"recloop: {error}", err=True, fg="red")
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno not in REMEDIES:
                raise
            expected, remedy = REMEDIES[error.errno]
            click.secho(f"recloop: {error.filename or 'the disk'}: {error.strerror}; {remedy}", err=True, fg="red")
            ctx.exit(expected.exit_code)


@click.group(
    cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="recloop")
def main() -> None:
    """The daily loop of a recommender: land, join, validate, train, evaluate, tune, quantize, register, deploy.

    A scenario (scenarios/NAME.yaml) describes one recommender. Start with `recloop run --scenario movielens --from
    1997-11-12 --to 1997-11-14`; bring your own data in with `recloop init`.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a lost peer bring a stack of C++ each


class Context:
    """What the common options say: the scenario and its store."""

    def __init__(
        self, *, scenario: str, data: str | None, store: str, settings: tuple[str, ...], no_track: bool, as_json: bool
    ) -> None:
        overrides = dict(_setting(text) for text in settings)
        self.scenario: Scenario = load_scenario(scenario_file(scenario), data=data, overrides=overrides)
        self.store: ScenarioStore = open_store(store, self.scenario.name)
        self.as_json = as_json
        self.track = not no_track
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{self.store.root.parent / 'mlflow.db'}")

    def check(self) -> None:
        """Refuses a scenario with mistakes that show without data, before any of its steps runs on them."""
        from feature_jobs.checks.check import check

        check(self.scenario, with_data=False)

    def show(self, value: Any, text: str | None = None) -> None:
        """Prints `value` as JSON with --json, else `text`."""
        shown = json.dumps(value, sort_keys=True, default=str) if self.as_json else text
        if shown is not None:
            click.echo(shown)


execution_option = click.option(
    "--execution",
    type=click.Choice(LAUNCHABLE),
    envvar=SETTING,
    default="process",
    show_default=True,
    help="Where a step's function runs: in this process, or each in a container of its own.",
)


def scenario_file(name: str) -> Path:
    """`movielens` means scenarios/movielens.yaml; anything with a slash or an ending is a path."""
    path = Path(name)
    return path if path.suffix or len(path.parts) > 1 else Path("scenarios") / f"{name}.yaml"


def _setting(text: str) -> tuple[str, Any]:
    from ruamel.yaml import YAML

    path, equals, value = text.partition("=")
    if not equals:
        raise BadInputError(f"--set {text!r}: write it as config.path=value, train.learning_rate=0.01")
    return path, YAML(typ="safe").load(value)


def with_context(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the common options, and passes a Context as first argument."""
    import functools

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        common = {name: given.pop(name) for name in ("scenario", "data", "store", "settings", "no_track", "as_json")}
        return command(Context(**common), **given)

    options = [
        click.option("--scenario", "-s", required=True, help="Name in scenarios/, or path of a YAML file."),
        click.option("--data", envvar="RECLOOP_DATA", help="Folder of the logs, instead of the scenario's data.path."),
        click.option(
            "--store", envvar="RECLOOP_STORE", default=".recloop/store", show_default=True, help="Where outputs go."
        ),
        click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a value of the scenario."),
        click.option("--no-track", is_flag=True, envvar="RECLOOP_NO_TRACK", help="Don't show the steps in MLflow."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object for programs."),
    ]
    for option in reversed(options):
        call = option(call)
    return call
