"""Logs with a known answer: a user's clicks follow a formula, so the best AUC that a model can reach is known.

Users and items come by Zipf's law and new ones join every day; item quality walks from day to day; hours and weekdays
matter. A click leads to a like now and then, and to watch time (an outcome). Two things are planted: `lottery` says
nothing at all; `screen` and `style` say nothing each alone, but together raise or lower the odds of a click.

    events/{ds}.parquet  the log          truth/{ds}.parquet  p_click, p_like of the same rows (never a source)
    users/{ds}.parquet   users that first appear on ds       items/{ds}.parquet  items likewise

Rows are drawn in chunks from a counter-based generator (Philox, Salmon et al. 2011) keyed by seed, day and chunk: any
day can be made alone, and memory grows with users and items, never with rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.checks.problems import closest
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_start, parse_ds

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

CHUNK_ROWS = 250_000
_NUM_LATENT = 4
_NUM_CATEGORIES = 30
_NUM_SIDES = 8  # values of screen and of style
_STREAMS = ("rows", "users", "items", "walk", "categories", "taste", "quality")
# Events by hour of the local day: few at night, most in the evening.
_HOURS = np.array([2, 1, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 6, 6, 6, 7, 9, 11, 12, 11, 8, 4], dtype=np.float64)
_COUNTRIES = np.array(["BR", "CN", "DE", "FR", "ID", "IN", "JP", "MX", "NG", "US"])


@dataclass(frozen=True)
class SyntheticOptions:
    """`data.options` of a synthetic scenario. `rows` a day; `new_users` and `new_items` join each day after the first;
    `drift` is the daily step of item quality, in units of the log odds."""

    rows: int = 20_000
    users: int = 3_000
    items: int = 2_000
    new_users: int = 100
    new_items: int = 50
    zipf: float = 1.05
    drift: float = 0.1
    cross: float = 1.0
    seed: int = 7

    @classmethod
    def of(cls, scenario: Scenario, options: Mapping[str, Any] | None = None) -> SyntheticOptions:
        """Those of the scenario, with `options` over them. Raises BadInputError for one that can't be used."""
        known = {name: type(value) for name, value in asdict(cls()).items()}
        given: dict[str, Any] = {}
        for name, value in {**scenario.data.options, **(options or {})}.items():
            place = f"{scenario.place_of('data', 'options', name)}: data.options.{name}: {value!r}"
            if name not in known:
                raise BadInputError(f"{place}: the generator has no such option; {closest(name, known)}")
            try:
                number = float(value)
            except ValueError:
                raise BadInputError(f"{place}: is not a number; write one") from None
            least = {"rows": 1, "users": 1, "items": 1}.get(name, 0)
            if not least <= number <= 1e9 or (known[name] is int and number != int(number)):
                raise BadInputError(f"{place}: must be a {'whole ' * (known[name] is int)}number from {least} to 1e9")
            given[name] = known[name](number)
        return cls(**given)


@dataclass(frozen=True)
class _Day:
    """`number` counts from 0, the first day generated; `start_ms` since 1970 UTC."""

    number: int
    weekday: int
    start_ms: int
    length_ms: int


@dataclass(frozen=True)
class _World:
    """The true parameters of one day. U users, I items so far, L latent dimensions."""

    bias_U: Floats
    taste_UL: Floats
    quality_I: Floats
    latent_IL: Floats


def generate(scenario: Scenario, folder: Path, options: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Writes every day of the scenario that `folder` lacks; yields a line a day.

    Raises BadInputError where the folder holds days of other settings, or the scenario has no last day.
    """
    settings, days = SyntheticOptions.of(scenario, options), scenario.data.days
    if days.last is None:
        raise BadInputError(f"{scenario.place_of('data', 'days')}: data.days.last: missing; say where to stop")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, {**asdict(settings), "first": str(days.warm_up_from or days.first)})
    day = days.warm_up_from or days.first
    while day <= days.last:
        path = folder / "events" / f"{day}.parquet"
        if path.exists():
            yield f"{path}: is there"
        else:
            write_day(scenario, settings, str(day), folder)
            yield f"{path}: {settings.rows:,} rows"
        day += ONE_DAY


def write_day(scenario: Scenario, settings: SyntheticOptions, ds: str, folder: Path) -> None:
    """Writes the files of one day, events last, each whole or not at all."""
    date, zero = parse_ds(ds), scenario.data.days.warm_up_from or scenario.data.days.first
    start_ms, end_ms = (day_start(scenario, str(day)) // 1000 for day in (date, date + ONE_DAY))
    day = _Day((date - zero).days, date.weekday(), start_ms, end_ms - start_ms)
    _write(folder / "users" / f"{ds}.parquet", [_new_users(settings, day.number)])
    _write(folder / "items" / f"{ds}.parquet", [_new_items(settings, day.number)])
    chunks = _chunks(settings, _world(settings, day.number), day)
    _write(folder / "events" / f"{ds}.parquet", chunks, truth=folder / "truth" / f"{ds}.parquet")


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Marks the folder with its settings; days of two settings must not mix."""
    marker = folder / "synthetic.json"
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    if marker.exists() and marker.read_text() != text:
        raise BadInputError(
            f"{marker}: the folder holds days of other settings; delete {folder}, or choose another folder with --data"
        )
    marker.write_text(text)


def _write(path: Path, tables: list[pa.Table] | Iterator[tuple[pa.Table, pa.Table]], truth: Path | None = None) -> None:
    """Streams tables into a Parquet file (and pairs of tables into two), which appear when they are complete."""
    paths = [path] if truth is None else [path, truth]
    parts = [p.with_name(f".{p.name}.part") for p in paths]
    writers: list[pq.ParquetWriter] = []
    for p in paths:
        p.parent.mkdir(parents=True, exist_ok=True)
    try:
        for chunk in tables:
            group = chunk if isinstance(chunk, tuple) else (chunk,)
            if not writers:
                writers = [pq.ParquetWriter(p, t.schema, compression="zstd") for p, t in zip(parts, group, strict=True)]
            for writer, table in zip(writers, group, strict=True):
                writer.write_table(table)
    # Ctrl-C, too, must not leave a part behind.
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    finally:
        for writer in writers:
            writer.close()
    # The log last: it says that the day is whole.
    for part, whole in zip(reversed(parts), reversed(paths), strict=True):
        part.replace(whole)


def _random(settings: SyntheticOptions, stream: str, day: int = 0, chunk: int = 0) -> np.random.Generator:
    # The lowest word is Philox's own count of draws; the others make every stream, day and chunk a range of its own.
    counter = [0, chunk, day, _STREAMS.index(stream)]
    # Philox counts instead of remembering: any day and chunk is drawn without those before it, in any process.
    return np.random.Generator(np.random.Philox(key=settings.seed, counter=counter))


def _num_at(first: int, new: int, day: int) -> int:
    return first + new * day


def _world(settings: SyntheticOptions, day: int) -> _World:
    num_users = _num_at(settings.users, settings.new_users, day)
    num_items = _num_at(settings.items, settings.new_items, day)
    age_U, country_U = _user_traits(settings, num_users)
    taste = _random(settings, "taste")
    # Drawn row by row, so that a user's values stay the same when later days add users.
    bias_taste = taste.standard_normal((num_users, _NUM_LATENT + 1), dtype=np.float32)
    bias_U = 0.4 * bias_taste[:, 0] - 0.01 * (age_U - 45) + 0.05 * (country_U - 4.5)
    category_I = _item_traits(settings, num_items)[0]
    center = _random(settings, "categories").standard_normal((_NUM_CATEGORIES, _NUM_LATENT), dtype=np.float32)
    own = _random(settings, "quality").standard_normal((num_items, _NUM_LATENT + 1), dtype=np.float32)
    quality_I = 0.6 * own[:, 0]
    # The walk is summed again each day, so that a day depends on the seed alone and not on files of other days.
    for past in range(1, day + 1):
        quality_I += settings.drift * _random(settings, "walk", past).standard_normal(num_items, dtype=np.float32)
    latent_IL = 0.8 * center[category_I] + 0.4 * own[:, 1:]
    return _World(bias_U.astype(np.float32), 0.4 * bias_taste[:, 1:], quality_I, latent_IL)


def _user_traits(settings: SyntheticOptions, num: int) -> tuple[Ints, Ints]:
    """Age and country number of users 0..num-1; a user's do not depend on `num`."""
    traits_U2 = _random(settings, "users").random((num, 2))
    return (18 + 62 * traits_U2[:, 0] ** 1.5).astype(np.int64), (10 * traits_U2[:, 1]).astype(np.int64)


def _item_traits(settings: SyntheticOptions, num: int) -> tuple[Ints, Ints, npt.NDArray[Any], Ints]:
    """Category, publisher, price and three tags of items 0..num-1; an item's do not depend on `num`."""
    traits = _random(settings, "items").random((num, 6))
    category = (_NUM_CATEGORIES * traits[:, 0] ** 2).astype(np.int64)
    publisher = (500 * traits[:, 1] ** 2).astype(np.int64)
    price = np.round(np.exp(1 + 3 * traits[:, 2]), 2)
    tags = (200 * traits[:, 3:] ** 2).astype(np.int64)
    return category, publisher, price, tags


def _newcomers(first: int, new: int, day: int) -> slice:
    return slice(0, first) if day == 0 else slice(_num_at(first, new, day - 1), _num_at(first, new, day))


def _new_users(settings: SyntheticOptions, day: int) -> pa.Table:
    rows = _newcomers(settings.users, settings.new_users, day)
    age, country = _user_traits(settings, rows.stop)
    ids = np.arange(rows.start, rows.stop)
    return pa.table({"user_id": ids, "age": age[rows], "country": _COUNTRIES[country[rows]]})


def _new_items(settings: SyntheticOptions, day: int) -> pa.Table:
    rows = _newcomers(settings.items, settings.new_items, day)
    category, publisher, price, tags = _item_traits(settings, rows.stop)
    lists = pa.FixedSizeListArray.from_arrays(tags[rows].reshape(-1), 3).cast(pa.list_(pa.int64()))
    return pa.table(
        {
            "item_id": np.arange(rows.start, rows.stop),
            "category": category[rows],
            "publisher": pa.array([f"p{number:03d}" for number in publisher[rows].tolist()], pa.string()),
            "price": price[rows],
            "tags": lists,
        }
    )


def _zipf(uniform: npt.NDArray[np.float64], num: int, exponent: float) -> Ints:
    """Ranks 0..num-1 with odds falling as rank^-exponent: the inverse of the continuous distribution."""
    power = 1.0 - (exponent if exponent != 1.0 else 1.000001)  # the integral of 1/x has another form
    rank = ((((num + 1.0) ** power - 1.0) * uniform + 1.0) ** (1.0 / power)).astype(np.int64) - 1
    clipped: Ints = np.minimum(rank, num - 1)
    return clipped


def _draw_ids(random: np.random.Generator, num_rows: int, population: tuple[int, int], exponent: float) -> Ints:
    """Ids of rows: four in five of those there from the start, else of newcomers, the latest most."""
    first, num_new = population
    ids = _zipf(random.random(num_rows), first, exponent) * _coprime(first) % first
    fresh = _zipf(random.random(num_rows), max(num_new, 1), exponent)
    is_fresh = random.random(num_rows) < 0.2
    return np.where(is_fresh & (num_new > 0), first + num_new - 1 - fresh, ids)


def _coprime(num: int) -> int:
    """A stride that visits each of `num` ids once, so that popular ids are not the small ones."""
    stride = int(num * 0.618) | 1
    while np.gcd(stride, num) != 1:
        stride += 2
    return stride


def _chunks(settings: SyntheticOptions, world: _World, day: _Day) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The day's rows in order of time, with the probabilities that they were drawn from."""
    cumulated = np.concatenate([[0.0], np.cumsum(_HOURS)]) / _HOURS.sum()
    for chunk, start in enumerate(range(0, settings.rows, CHUNK_ROWS)):
        num = min(CHUNK_ROWS, settings.rows - start)
        random = _random(settings, "rows", day.number, chunk)
        # Each chunk is a stretch of the day of its own, so the day is in order of time without a sort over it.
        share = (start + num * np.sort(random.random(num))) / settings.rows
        # Inverse transform sampling: the cumulated distribution of the hours, read backwards.
        hour = np.interp(share, cumulated, np.arange(25))
        users = _draw_ids(random, num, (settings.users, settings.new_users * day.number), settings.zipf * 0.7)
        items = _draw_ids(random, num, (settings.items, settings.new_items * day.number), settings.zipf)
        screen, style = random.integers(0, _NUM_SIDES, (2, num))
        position = random.integers(0, 10, num)
        liking_N = np.einsum("nl,nl->n", world.taste_UL[users], world.latent_IL[items])
        together = np.where((screen + style) % 2 == 0, 0.5, -0.5) * settings.cross
        season = 0.3 * np.sin(2 * np.pi * (hour - 15) / 24) + (0.25 if day.weekday >= 5 else 0.0)
        logit = -1.2 + world.bias_U[users] + world.quality_I[items] + liking_N + together + season - 0.08 * position
        p_click = 1 / (1 + np.exp(-logit.astype(np.float64)))
        p_like = p_click / (1 + np.exp(1.5 - 1.5 * liking_N.astype(np.float64)))
        # One draw for both, so that each like has its click: p_like is never above p_click.
        luck = random.random(num)
        click, like = luck < p_click, luck < p_like
        watch = np.where(click, np.round(np.exp(2 + 0.5 * liking_N + random.standard_normal(num)), 1), 0.0)
        columns = {
            "time_ms": day.start_ms + (hour / 24 * day.length_ms).astype(np.int64),
            "user_id": users,
            "item_id": items,
        }
        log = {
            **columns,
            "screen": screen,
            "style": style,
            "position": position,
            "lottery": random.integers(0, 1000, num),
            "click": click.astype(np.int8),
            "like": like.astype(np.int8),
            "watch_s": watch,
        }
        yield pa.table(log), pa.table({**columns, "p_click": p_click, "p_like": p_like})
