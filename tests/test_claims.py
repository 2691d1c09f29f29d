"""Numbers on pages: each is that of the committed results, or named in `claims.yaml` as none of theirs.

`docs/results/claims.yaml` holds for each page:

* `part`: the beginning of the checked part and that of what follows; without it, the whole page is checked.
* `claims`: a `text` of the page with named fields, and for each field where its value comes from. A field may take any
  of its keys from its claim, and from the page.
* `not_results`: phrases whose numbers are no results, such as names, settings and counts of seeds.
* `without_data`: phrases whose numbers have no file here, each with the reason.

A field has these keys; a word alone stands for its path:

* `from`: a file or pattern below `docs/results`, if need be with `#` and the path of the list in it that holds the
  rows; or a name of `COMPUTED`. The conditions of claim and page do not hold in a source that the field names itself.
* `where`: values that a row must have, or lists of such values.
* `path`: keys and places joined by dots, or a list of paths. Values of null are left out.
* `take`: a name of `TAKEN`; `only` unless given.
* `minus`, `over`: other keys of the same field, for a difference or a ratio of two selections.
* `unit`: what the value is divided by.
* `nearest`: what the value is rounded to a multiple of.
* `format`: of Python; `_` groups thousands by a blank.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.learning import exact_members, posterior
from benchmarks.learning.sparse_suite.report import welch_interval
from benchmarks.speed import exchange, libraries, ranks, update_rate

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES: dict[str, dict[str, Any]] = yaml.safe_load((RESULTS / "claims.yaml").read_text(encoding="utf-8"))
Row = dict[str, Any]
Span = tuple[int, int]
KEYS = {"from", "where", "path", "take", "minus", "over", "unit", "nearest", "format"}
GAMES = [f"MinAtar-{game}-v1" for game in ("Breakout", "SpaceInvaders", "Freeway")]
"""Games of the runs over several tasks, in their order."""
NO_RESULTS = r"`[^`]*`|\]\([^)]*\)|(?<![\d.])\d+\.\d+\.\d+(?![\d.]\d)|\| [ABC]\d+ "
"""Code, targets of links, versions, and the names of faults in the first column of their tables."""


def only(values: Sequence[Any]) -> Any:
    """Return the value that all rows share."""
    first, *others = dict.fromkeys(values)
    if others:
        raise ValueError(f"more than one value: {first}, {others}")
    return first


TAKEN: dict[str, Callable[[Sequence[Any]], Any]] = {
    "only": only,
    "median": statistics.median,
    "mean": statistics.mean,
    "min": min,
    "max": max,
    "count": len,
    "list": list,
    "lengths": lambda lists: sum(map(len, lists)),
}
"""What is made of the selected values; `lengths` counts what selected lists hold.

Beside these, `low` and `high` are the ends of Student's 95 % interval.
"""


def posterior_rows() -> list[Row]:
    """Return the runs of the posterior's benchmark, with the score at the minutes of the plain agent."""
    return posterior.runs_of(rows_of("posterior/*.json"))


def ablation_rows() -> list[Row]:
    """Return the runs of the ablation, with the share of the posterior in the variance of the intervals."""

    def share(row: Row) -> float:
        of_posterior, noise = row["epistemic_std_mean"] ** 2, row["fitted_noise_std"] ** 2
        return float(of_posterior / (of_posterior + noise))

    return [{**row, "share": share(row)} for row in rows_of("ablation/*.json")]


def continual_rows() -> list[Row]:
    """Return the normalised measures of all runs over several games.

    The score that counts as 0 is that of random play, or of the untrained networks of the method.
    """
    folder = RESULTS / "continual"
    (references,) = rows_of("continual/references.json")
    low, high = np.array([references[game] for game in GAMES]).T
    paths = [path for path in sorted((folder / "runs").glob("*/metrics.npy")) if "single" not in path.parent.name]
    stored = {path.parent.name: np.load(path) for path in paths}
    raw = {name: np.stack([run[f"{game}/return_mean"] for game in GAMES], axis=1) for name, run in stored.items()}
    rows = []
    for name, zero in product(raw, ("random", "untrained")):
        method, _, seed = name.rpartition("_seed")
        untrained = np.mean([scores[0] for other, scores in raw.items() if other.startswith(f"{method}_seed")], axis=0)
        lowest = low if zero == "random" else untrained
        scores = (raw[name] - lowest) / (high - lowest)
        learned = np.array([scores[stored[name]["visit"] == visit, visit][-1] for visit in range(len(GAMES))])
        measures = {"average": scores[-1], "new_tasks": learned, "forgetting": learned - scores[-1]}
        before = dict(zip(GAMES, raw[name][0].tolist(), strict=True))
        means = {measure: float(values.mean()) for measure, values in measures.items()}
        rows.append({"method": method, "seed": int(seed), "zero": zero, "before": before, **means})
    return rows


def exchange_rows() -> list[Row]:
    """Return the times of the exchange, by Gloo beside those of a ring, and the shares of many ranks by Gloo."""
    measured, of_ranks = rows_of("exchange.json#measurements"), rows_of("ranks.json#measurements")
    latency, rate = exchange.fitted(measured)
    times = []
    for row in measured:
        ring = 1000 * exchange.ring_seconds(row["ranks"], 4 * row["values"], latency, rate)
        times.append({**row, "to_ring": row["milliseconds"][1] / ring} if row["way"] == "gloo" else row)
    return times + exchange.predictions(measured, of_ranks)


def table_rows() -> list[Row]:
    """Return the tables that benchmarks make of their rows.

    Rows of 0.1.0 without a number of agent steps per update have an update per 4.
    """
    tables = {}
    pages = {
        **{"libraries": libraries, "update_rate": update_rate, "ranks": ranks, "exchange": exchange},
        "exact_members": exact_members,
    }
    for page, benchmark in pages.items():
        tables[page] = benchmark.table([{"steps_per_update": 4, **row} for row in rows_of(f"{page}.json#measurements")])
    return [{"page": page, "table": plain_text(table)} for page, table in tables.items()]


COMPUTED: dict[str, Callable[[], list[Row]]] = {
    "posterior": posterior_rows,
    "ablation": ablation_rows,
    "continual": continual_rows,
    "exchange": exchange_rows,
    "tables": table_rows,
}


@cache
def rows_of(source: str) -> list[Row]:
    """Return the rows of a file, of files, or of a name of `COMPUTED`."""
    if source in COMPUTED:
        return COMPUTED[source]()
    pattern, _, key = source.partition("#")
    rows: list[Row] = []
    for path in sorted(RESULTS.glob(pattern)):
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = inside(stored, key) if key else stored
        rows += stored if isinstance(stored, list) else [stored]
    if not rows:
        raise ValueError(f"{source} has no rows")
    return rows


def inside(row: Row, path: str) -> Any:
    """Return the value at a path; None without one."""
    value: Any = row
    for key in path.split("."):
        if isinstance(value, list):
            value = value[int(key)]
        elif key in value:
            value = value[key]
        else:
            return None
    return value


def merged(general: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of both, the special ones first; a source of its own drops the general conditions."""
    conditions = {} if "from" in special else general.get("where", {})
    return {**general, **special, "where": {**conditions, **special.get("where", {})}}


def selected(field: Mapping[str, Any]) -> list[Any]:
    """Return the values that a field selects, row by row."""

    def fits(row: Row) -> bool:
        pairs = [(row.get(key), wanted) for key, wanted in field["where"].items()]
        return all(value in wanted if isinstance(wanted, list) else value == wanted for value, wanted in pairs)

    paths = [field["path"]] if isinstance(field["path"], str) else field["path"]
    values = [inside(row, path) for row in rows_of(field["from"]) if fits(row) for path in paths]
    return [value for value in values if value is not None]


def value_of(field: Mapping[str, Any]) -> Any:
    """Return the value of a field."""
    if unknown := set(field) - KEYS:
        raise ValueError(f"unknown keys {unknown}")
    alone = {key: value for key, value in field.items() if key not in ("minus", "over")}
    other = next((merged(alone, field[key]) for key in ("minus", "over") if key in field), None)
    values, take = selected(alone), field.get("take", "only")
    if take in ("low", "high"):
        # Against zeros Welch's interval is Student's of the mean.
        return welch_interval(values, selected(other) if other else [0.0] * len(values))[take == "high"]
    value = TAKEN[take](values)
    if other is None:
        return value
    return value - value_of(other) if "minus" in field else value / value_of(other)


def written(field: Mapping[str, Any]) -> str:
    """Return the value of a field as it stands on the page."""
    value, unit, nearest, form = value_of(field), field.get("unit"), field.get("nearest"), field.get("format", "")
    values = value if isinstance(value, list) else [value]
    values = [one / unit for one in values] if unit else values
    values = [nearest * round(one / nearest) for one in values] if nearest else values
    texts = [format(one, form) for one in values]
    return ", ".join(text.replace("_", " ") if "_" in form else text for text in texts)


def plain_text(page: str) -> str:
    """Return a page without its blocks of code, each run of white space as one blank."""
    page = re.sub(r"^```.*?^```", " ", page, flags=re.DOTALL | re.MULTILINE)
    return " ".join(re.sub(r"^ {4}.*$", " ", page, flags=re.MULTILINE).split())


def whole(pattern: str) -> str:
    """Return a pattern that neither begins nor ends within a number."""
    return rf"(?<!\d)(?<!\d[.,])(?:{pattern})(?!\d|[.,]\d)"


def spans_of_claim(claim: Mapping[str, Any], page: Mapping[str, Any], text: str) -> tuple[str, list[Span]]:
    """Return the filled text of a claim, and where its values stand in the text of the page."""
    shared = {key: value for key, value in page.items() if key in KEYS}
    general = merged(shared, {key: value for key, value in claim.items() if key in KEYS})
    fields = {**page.get("fields", {}), **claim.get("fields", {})}
    filled, pattern, names = "", "", 0
    for literal, name, _, _ in Formatter().parse(claim["text"]):
        filled, pattern = filled + literal, pattern + re.escape(literal)
        if name is not None:
            field = {"path": fields[name]} if isinstance(fields[name], str) else fields[name]
            value = written(merged(general, field))
            filled, pattern, names = filled + value, f"{pattern}({re.escape(value)})", names + 1
    found = re.finditer(whole(pattern), text)
    return filled, [match.span(group + 1) for match in found for group in range(names)]


def problems_of(page: Mapping[str, Any], text: str) -> list[str]:
    """Return what is wrong with a page: claims and phrases that do not stand on it, and numbers without either."""
    problems = []
    tied: list[Span] = [match.span() for match in re.finditer(NO_RESULTS, text)]
    for claim in page.get("claims", []):
        filled, spans = spans_of_claim(claim, page, text)
        problems += [] if spans else [f"not on the page: {filled}"]
        tied += spans
    for phrase in [*page.get("not_results", []), *page.get("without_data", {})]:
        spans = [match.span() for match in re.finditer(whole(re.escape(phrase)), text)]
        problems += [] if spans else [f"not on the page: {phrase}"]
        tied += spans
    return problems + [f"tied to nothing: {place}" for place in untied(text, tied)]


def untied(text: str, tied: Sequence[Span]) -> Iterator[str]:
    """Yield the surroundings of each number outside of the spans."""
    for match in re.finditer(r"\d[\d.,]*", text):
        digits = [place for place in range(*match.span()) if text[place].isdigit()]
        if not all(any(start <= place < end for start, end in tied) for place in digits):
            yield text[max(0, match.start() - 40) : match.end() + 40]


def part_of(page: Mapping[str, Any], text: str) -> str:
    """Return the checked part of a page."""
    if "part" not in page:
        return text
    start, end = (text.index(beginning) for beginning in page["part"])
    return text[start:end]


@pytest.mark.parametrize("name", PAGES)
def test_numbers_of_pages_are_those_of_the_results(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    problems = problems_of(PAGES[name], plain_text(part_of(PAGES[name], text)))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", PAGES)
def test_exceptions_are_phrases_with_reasons(name: str) -> None:
    page = PAGES[name]
    assert set(page) <= {"part", "fields", "claims", "not_results", "without_data", *KEYS}
    phrases = [*page.get("not_results", []), *page.get("without_data", {})]
    assert len(phrases) == len(set(phrases))
    assert [phrase for phrase in phrases if not re.search(r"[^\d\s.,%-]", phrase)] == []
    assert all(len(reason.split()) > 2 for reason in page.get("without_data", {}).values())


def test_every_page_of_results_with_a_number_has_an_entry() -> None:
    texts = {path: plain_text(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.md"))}
    no_results = {path: [match.span() for match in re.finditer(NO_RESULTS, text)] for path, text in texts.items()}
    with_numbers = [path for path, text in texts.items() if any(untied(text, no_results[path]))]
    assert [path.name for path in with_numbers if path.relative_to(ROOT).as_posix() not in PAGES] == []


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder with the results of four made-up runs."""
    monkeypatch.setattr("tests.test_claims.RESULTS", tmp_path)
    rows_of.cache_clear()
    for arm, scores in {"ours": [1, 3], "theirs": [2, 6]}.items():
        for seed, score in enumerate(scores, start=1):
            run = {"arm": arm, "seed": seed, "test": {"score": score, "frames": 12_000}, "lost": None}
            (tmp_path / f"{arm}_seed{seed}.json").write_text(json.dumps(run), encoding="utf-8")
    yield tmp_path
    rows_of.cache_clear()


PAGE = """# Scores of 2 arms

    command --seeds 9

Our runs have a mean of {mean} and
scores of 1, 3 after 12 000 frames (`abc1234`, [file](score_7.json)); the others have a mean of 4.0.
"""
CLAIMS: dict[str, Any] = {
    "from": "*.json",
    "path": "test.score",
    "claims": [
        {
            "text": "mean of {mean} and scores of {scores} after {frames} frames",
            "where": {"arm": "ours"},
            "fields": {
                "mean": {"take": "mean", "format": ".1f"},
                "scores": {"take": "list"},
                "frames": {"path": "test.frames", "format": "_"},
            },
        },
        {
            "text": "others have a mean of {mean}",
            "where": {"arm": "theirs"},
            "fields": {"mean": {"take": "mean", "format": ".1f"}},
        },
    ],
    "not_results": ["2 arms"],
}


@pytest.mark.usefixtures("results")
def test_a_page_with_the_numbers_of_its_files_has_no_problem() -> None:
    assert problems_of(CLAIMS, plain_text(PAGE.format(mean="2.0"))) == []


@pytest.mark.usefixtures("results")
def test_a_changed_number_is_found() -> None:
    problems = problems_of(CLAIMS, plain_text(PAGE.format(mean="2.1")))
    assert problems[0] == "not on the page: mean of 2.0 and scores of 1, 3 after 12 000 frames"
    assert problems_of(CLAIMS, plain_text(PAGE.format(mean="12.0")))[0] == problems[0]


def test_changed_data_are_found(results: Path) -> None:
    (results / "theirs_seed1.json").write_text('{"arm": "theirs", "test": {"score": 8}}', encoding="utf-8")
    problems = problems_of(CLAIMS, plain_text(PAGE.format(mean="2.0")))
    assert problems[0] == "not on the page: others have a mean of 7.0"


@pytest.mark.usefixtures("results")
def test_an_untied_number_is_found() -> None:
    problems = problems_of(CLAIMS, plain_text(PAGE.format(mean="2.0") + "\nAnother run had 5.\n"))
    assert len(problems) == 1
    assert problems[0].startswith("tied to nothing: ")
    assert problems[0].endswith("Another run had 5.")


@pytest.mark.usefixtures("results")
def test_a_phrase_that_is_gone_is_found() -> None:
    stale = {**CLAIMS, "without_data": {"3 games": "of an older version"}}
    assert problems_of(stale, plain_text(PAGE.format(mean="2.0"))) == ["not on the page: 3 games"]


@pytest.mark.usefixtures("results")
def test_values_of_fields() -> None:
    field = {"from": "*.json", "path": "test.score", "where": {"arm": ["ours", "theirs"], "seed": 2}}
    assert value_of({**field, "take": "max"}) == 6
    assert value_of({**field, "where": {"arm": "theirs"}, "take": "mean", "over": {"where": {"arm": "ours"}}}) == 2
    assert value_of({**field, "where": {"arm": "theirs"}, "take": "median", "minus": {"where": {"seed": 1}}}) == 2
    assert value_of({**field, "path": ["test.score", "seed"], "take": "list"}) == [3, 2, 6, 2]
    assert value_of({**field, "path": "lost", "take": "count"}) == 0
    low, high = (value_of({**field, "where": {"arm": "ours"}, "take": end}) for end in ("low", "high"))
    assert (low, high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
    assert written({**field, "where": {"seed": 1}, "take": "list", "unit": 0.01, "format": ".0f"}) == "100, 200"
    assert written({**field, "path": "test.frames", "unit": 0.7, "nearest": 100, "format": "_"}) == "17 100"
    assert value_of({**field, "path": "arm", "take": "lengths"}) == len("ours" + "theirs")
    with pytest.raises(ValueError, match="more than one value"):
        value_of(field)
    with pytest.raises(ValueError, match="unknown keys"):
        value_of({**field, "factor": 2})
