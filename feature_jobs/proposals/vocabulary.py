"""Words in the names of columns, and what they usually say about a column. All guesses by name begin here."""

from __future__ import annotations

import itertools
import keyword
import re
import unicodedata
from collections.abc import Iterable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The likeliest word first.
USER = (
    "user uid member customer visitor reader viewer listener candidate applicant player learner account client person "
    "profile guest device cookie"
)
ITEM = (
    "item iid product stock video movie film song track article news book photo post note doc document content "
    "question poi venue sku offer ad adgroup banner creative listing hotel restaurant business game app job campaign "
    "page url"
)
PEOPLE, THINGS = _words(USER), _words(ITEM)
PEOPLE_AND_THINGS = PEOPLE | THINGS
ID_ENDINGS = _words("id uid iid no num nr number code key sku uuid guid")
# Ids of one row or one visit: they never come again, so nothing can be learned for them.
ROW = _words("row impression session request invoice order transaction basket trace record log line index uuid")
# Those of them that name one answer of a server, whose rows were shown together.
SHOWN_TOGETHER = _words("request impression")
# Those that do so in an id: search_id, not the text of a search.
ANSWERS = _words("search auction bid query page pageview serve feed refresh recommendation rec")
SPLIT = _words("split fold partition train test valid validation holdout subset")
# The values of a split in several languages: train_1, Testing, entrenamiento, prueba.
SPLIT_VALUE = re.compile(
    r"((train|test|valid|eval|holdout|entren|prueb|trein|appren|lern|prüf)[^\W\d_]*|tr|te|val|dev|fold)[\W_]*(set|\d*)"
)

TIME = _words("time timestamp ts t datetime date dt at when event logged created seen posted unix unixtime epoch day")
OTHER_TIMES = _words(
    "upload birth register signup release expire modified stay play end join click clicked converted received arrived"
    " landed ingested"
)
SNAPSHOT = _words("last update updated valid snapshot modified asof effective since")
ALL_TIMES = TIME | OTHER_TIMES | SNAPSHOT
CLOCK = _words("date dt day hour hourmin minute second month year week weekday quarter timestamp ts datetime time")

DAYS = _words("date dt day month year week weekday quarter")

ACTIONS = _words(
    "buy bought purchase purchased order ordered convert converted conversion install installed paid sale "
    "click clicked clk view viewed watch watched like liked love favorite fav share shared follow followed comment "
    "commented cart label target forward save saved subscribe subscribed download played play skip skipped complete "
    "completed finish finished enter hate hated dislike book booked reply response open opened transaction return "
    "returned churn y apply applied accept accepted vote voted upvote upvoted rent rented"
)
NOT_ACTIONS = _words("rand test new auto train split")
NEGATIVE = _words("hate hated dislike skip skipped return returned churn")
PASSIVE = _words("view impression show exposure pv")
YES = _words("1 1.0 yes y true t ja j oui o si sí s sim tak да")
EVENT_TYPE = _words("event type action behavior behaviour activity interaction outcome result reaction")
RATINGS = _words("rating ratings score stars star grade rate review")
SCORES = _words("score prob probability pred predicted prediction propensity relevance model ctr cvr pctr pcvr")
AFTERWARDS = _words(
    "play played watch watched stay dwell spent elapsed listen listened revenue gmv paid payment quantity qty amount "
    "consumed completion progress sale"
)
DURATIONS = _words("time duration sec secs seconds ms s millis stay dwell")

QUANTITIES = _words(
    "age price cost count num size duration length len width height days hours minutes amount weight distance "
    "rank rating score total avg mean sum ratio rate popularity budget bid income salary ms sec seconds"
)
NUMBERS = QUANTITIES | {"number"}
CATEGORIES = _words("id uid code zip type category cat level status class kind group segment version year feat feature")
HISTORY = _words("seq sequence history hist past recent list")

_RESERVED = {"null", "none", "nan", "nil", "true", "false", "event_time"}  # they mean something in expressions
_NOUN_AND_ID = re.compile(f"({'|'.join(sorted({*PEOPLE_AND_THINGS, *ROW}))})({'|'.join(sorted(ID_ENDINGS))})")


def words_of(name: str) -> set[str]:
    """The parts of a name and the name: `userId`, `user_id` and `userid` have user and id."""
    parts = {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}
    joined = _NOUN_AND_ID.fullmatch(name.lower())
    return parts | {name.lower()} | set(joined.groups() if joined else ())


def clean(name: str) -> str:
    """A name that can stand in expressions."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))  # ü → u
    text = re.sub(r"\W+", "_", letters.strip(), flags=re.ASCII).strip("_") or "column"
    if keyword.iskeyword(text) or text.lower() in _RESERVED:
        return f"{text}_"
    return f"c_{text}" if text[0].isdigit() else text


def unique(name: str, taken: Iterable[str]) -> str:
    """The name, numbered where another differs from it in capitals only."""
    lowered = {other.lower() for other in taken}
    numbered = (f"{name}_{n}" for n in itertools.count(2))
    return next(c for c in itertools.chain([name], numbered) if c.lower() not in lowered)
