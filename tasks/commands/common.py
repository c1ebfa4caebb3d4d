"""Parts that all commands share: the group, the common options, and the handling of errors."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.schema import Scenario, load_scenario
from tasks.commands import arguments
from tasks.run.modes import LAUNCHABLE, SETTING
from tasks.steps import DAILY
from tasks.store.digests import finite
from tasks.store.places import is_remote
from tasks.store.record_store import DEFAULT_STORE
from tasks.store.scenario_store import Commit, ScenarioStore, open_store

if TYPE_CHECKING:
    from tasks.contract import Step
    from tasks.run.runner import Outcome

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
"""Meaning of an error of the operating system, by its number: the error that it counts as, and the remedy."""


_SHOWN = "recloop.shown"  # in the metadata of click's context: stdout has its JSON line
INTERRUPTED = 130  # as a shell reports SIGINT: 128 + 2


class Commands(click.Group):
    """Ends expected errors with one message on stderr and their exit code; shows the steps in the order of the day."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of definition."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the steps by themselves: a new user needs the others first."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        parts = {
            "Commands": [name for name in shown if name not in DAILY],
            "Steps of a day, which `recloop run` runs in this order": [name for name in shown if name in DAILY],
        }
        limit = formatter.width - 6 - max(map(len, shown))
        for title, names in parts.items():
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name, shown[name].get_short_help_str(limit)) for name in names])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        arguments.check_words(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except RecloopError as error:
            click.secho(f"recloop: {error}", err=True, fg="red")
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.secho("recloop: interrupted; committed outputs stand", err=True, fg="red")
            ctx.exit(INTERRUPTED)
        except OSError as error:
            # A rename or a link that fails names two paths.
            place = next((path for path in (error.filename, error.filename2) if arguments.is_given(ctx, path)), None)
            if error.errno not in REMEDIES and place is None:
                raise
            expected, remedy = REMEDIES.get(error.errno, _CHANGE)
            click.secho(
                f"recloop: {place or error.filename or 'the disk'}: {error.strerror or error}; {remedy}",
                err=True,
                fg="red",
            )
            ctx.exit(expected.exit_code)


@click.group(
    cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="recloop")
def main() -> None:
    """The daily loop of a recommender, from the day's logs to the version that serves.

    A scenario (scenarios/NAME.yaml) describes one recommender.

    \b
    Start:           recloop run -s movielens --from 1997-11-12 --to 1997-11-14
    Your own data:   recloop init FOLDER
    Try an idea:     recloop try -s movielens --set model.architecture=dcnv2
    See the state:   recloop status -s movielens
    """
    # Before torch is loaded, which reads it. Beside a busy process, threads that spin made lookups 50 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a lost peer bring a stack of C++ each


class Context:
    """Values of the common options: the scenario and its store. `base` is the scenario without `overrides`."""

    def __init__(
        self, *, scenario: str, data: Path | None, store: str, settings: tuple[str, ...], no_track: bool, as_json: bool
    ) -> None:
        self._file, self._data = scenario_file(scenario), data
        self.overrides: dict[str, Any] = dict(read_setting(text, "--set") for text in settings)
        self.scenario: Scenario = self.with_overrides(self.overrides)
        # A later error of the system about it is then bad input, not a defect of ours.
        arguments.remember(Path(self.scenario.data.path))
        self.store: ScenarioStore = open_store(store, self.scenario.name, self.scenario.option)
        self.as_json = as_json
        self.track = not no_track
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{self._tracking_folder / 'mlflow.db'}")

    @property
    def _tracking_folder(self) -> Path:
        """Folder of MLflow's database if nobody names a server: beside a local store, else on this machine."""
        if is_remote(self.store.url):
            return Path(DEFAULT_STORE).resolve().parent
        return self.store.work.parent

    def with_overrides(self, overrides: Mapping[str, Any]) -> Scenario:
        """The scenario of the file with values at config paths."""
        return load_scenario(self._file, data=self._data, overrides=overrides)

    @property
    def base(self) -> Scenario:
        """The scenario as its file has it."""
        return self.with_overrides({})

    @property
    def options(self) -> str:
        """`-s movielens --store PATH`: for commands that a message prints."""
        return self.store.options

    def check(self) -> None:
        """Refuses a scenario with mistakes that can be seen without data, before a step runs."""
        from feature_jobs.checks.check import check

        check(self.scenario, with_data=False)

    def proven(self, commit: Commit) -> Path:
        """The folder of a commit whose files are as they were committed. Raises CorruptError where they are not."""
        self.store.verify(commit)
        return commit.folder

    def after(self, declared: Step, outcome: Outcome) -> None:
        """Calls the step's `after` on its commit, which an earlier run may have made."""
        from tasks.run.runner import output_name_of

        if declared.after is None or outcome.digest is None:
            return
        commit = self.store.find(output_name_of(declared, self.scenario), outcome.ds)
        if commit is not None:
            declared.after(self.scenario, self.proven(commit))

    def show(self, value: Any, text: str | None = None) -> None:
        """Prints `value` as JSON with --json, else `text`."""
        shown = json_line(value) if self.as_json else text
        if shown is not None:
            click.get_current_context().meta[_SHOWN] = True
            click.echo(shown)


def json_line(value: Any) -> str:
    """The value as JSON that every program reads: JSON has no infinite number and no NaN, so these are null."""
    return json.dumps(finite(value), sort_keys=True, default=str, allow_nan=False)


def errors_as_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """With --json, an error that ends the command before it shows anything is shown as a list of one entry."""

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        try:
            return command(**given)
        except RecloopError as error:
            if given["as_json"] and _SHOWN not in click.get_current_context().meta:
                entry = {"outcome": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
                click.echo(json_line([entry]))
            raise

    return call


execution_option = click.option(
    "--execution",
    type=click.Choice(LAUNCHABLE),
    envvar=SETTING,
    default="process",
    show_default=True,
    help="Run steps in this process, or each in its own container.",
)


def scenario_file(name: str) -> Path:
    """`movielens` means scenarios/movielens.yaml; anything with a slash or an ending is a path."""
    path = Path(name)
    return path if path.suffix or len(path.parts) > 1 else Path("scenarios") / f"{name}.yaml"


def read_setting(text: str, option: str) -> tuple[str, Any]:
    """`train.learning_rate=0.01` as path and value, which is YAML."""
    from feature_jobs.schema.bounded_yaml import parse_yaml

    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise BadInputError(f"{option} {text[:80]!r}: write it as config.path=value, train.learning_rate=0.01")
    return path.strip(), parse_yaml(value, f"{option} {text[:80]!r}", remedy="check quotes and brackets")


def with_context(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the common options, and passes a Context as first argument."""

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        names = ("scenario", "data", "store", "settings", "no_track", "as_json")
        common = {name: given.pop(name) for name in names}
        if engine := given.pop("engine"):
            common["settings"] += (f"engine={engine}",)
        return command(Context(**common), **given)

    options = [
        click.option("--scenario", "-s", required=True, help="Name in scenarios/, or path of a YAML file."),
        click.option(
            "--data",
            type=arguments.path_to("folder"),
            envvar="RECLOOP_DATA",
            help="Folder of the logs; default: the scenario's data.path.",
        ),
        click.option(
            "--store",
            type=arguments.store,
            envvar="RECLOOP_STORE",
            default=DEFAULT_STORE,
            show_default=True,
            help="Folder for all outputs, or the URL of an object store: s3://BUCKET/PREFIX, gs://, az://.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="PATH=VALUE",
            help="Change a value of the scenario for this call, --set train.learning_rate=0.01; may be repeated.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["duckdb", "spark"]),
            help="Engine of the join for this call; default: the scenario's.",
        ),
        click.option("--no-track", is_flag=True, envvar="RECLOOP_NO_TRACK", help="Show nothing in MLflow."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON for programs, nothing for people."),
    ]
    # Reversed, because each call puts its option before those that are there.
    for option in reversed(options):
        call = option(call)
    return call
