"""README and documentation: commands and examples run as written, every link leads somewhere."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
import pytorch_lightning as pl
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from bayes_rl import VariationalActorCritic
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.cli import main
from tests.helpers.pictures import save_one_pixel

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITHDRAWN = "|".join(
    [
        *("weights are probability distributions", "how much of it to believe", "better calibrated, "),
        *("that chose nothing", "true ELBO"),
    ]
)
TINY_MODEL = ["--model.network.hidden_dim=8"]
TINY_DATA = ["--data.evaluation.games=1", "--data.evaluation.idle_frames=40", "--data.rules.max_episode_frames=200"]
TINY_FIT = [
    *("--data.frames_per_epoch=256", "--data.replay.min_size=64", "--data.replay.capacity=1000", "--data.num_envs=2"),
    *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--trainer.max_epochs=1"),
]


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words of every `bayes-rl` command of README, comments removed."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("bayes-rl")]


def test_readme_fits_on_two_screens() -> None:
    assert len(README.encode()) <= 7168


def test_the_share_of_weights_with_a_distribution_is_that_of_the_quickstart() -> None:
    """The networks are plain: the weights with a distribution are those of the Gaussian process, m of each action."""
    config = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    agent = VariationalActorCritic(**config["model"], observation_shape=(4, 84, 84), num_actions=4)
    assert not bayesian_layers(agent.twin)
    assert agent.twin.process is not None
    of_process = agent.twin.process.root[:, 0].numel()
    plain = sum(p.numel() for p in agent.twin.parameters() if p.requires_grad)
    share = of_process / (of_process + plain)
    assert f"{100 * share:.1f} % of the weights have a distribution" in README
    assert "those of a Gaussian process" in README


def test_make_verbs_of_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert verbs == ["fit", "test"]
    assert all(re.search(rf"^{verb}:", makefile, re.MULTILINE) for verb in verbs)


def test_commands_of_readme_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_one_pixel)  # half a second a picture
    verbs = [words[1] for words in commands()]
    assert verbs == ["fit", "fit", "validate", "predict", "predict", "report", "export"]
    for words in commands():
        verb, arguments = words[1], words[2:]
        if verb == "fit" and "--config" in arguments:
            arguments += [*TINY_FIT, *TINY_MODEL, *TINY_DATA]
        elif verb == "fit":
            arguments += ["--trainer.max_epochs=2"]
        elif verb == "predict" and "quickstart" in arguments:
            arguments += ["--data.rules.max_episode_frames=200"]
        elif verb == "report":  # the runs over several tasks that stand in the documentation
            names = ["online_ewc_seed1", "fine_tuning_seed1"]
            stored = ROOT / "docs/results/continual"
            for version, name in enumerate(names):
                shutil.copytree(stored / "runs" / name, tmp_path / f"runs/continual/version_{version}")
            references = tmp_path / "docs/results/continual/references.json"
            references.parent.mkdir(parents=True)
            shutil.copy(stored / "references.json", references)
            folders = sorted(tmp_path.glob(arguments[0]))
            assert len(folders) == 2, "README's pattern finds the runs"
            arguments = [*(str(folder.relative_to(tmp_path)) for folder in folders), *arguments[1:]]
        monkeypatch.setattr(sys, "argv", ["bayes-rl", verb, *arguments])
        main()
    assert list((tmp_path / "runs/quickstart").iterdir()) == [tmp_path / "runs/quickstart/version_0"]
    assert (tmp_path / "report/report.md").is_file()
    assert (tmp_path / "agent.safetensors").is_file()
    # Of the agent that was trained, and of one that comes with the program.
    assert {path.parents[2].name for path in tmp_path.rglob("videos/*")} == {"quickstart", "breakout"}


@pytest.mark.parametrize("code", blocks("python"), ids=["first"])
@pytest.mark.filterwarnings("ignore")  # which Lightning gives and the example does not cause
def test_python_example_of_readme_runs_as_written(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's `fast_dev_run` bounds the example, which is otherwise run to the letter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl, "Trainer", functools.partial(pl.Trainer, fast_dev_run=True))
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def parse(page: Path) -> list[Token]:
    """Return the tokens of a page, those inside of paragraphs, headings and cells included."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return [inside for token in tokens for inside in (token, *(token.children or []))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    tokens, found = parse(page), Counter[str]()
    for heading in [tokens[place + 1] for place, token in enumerate(tokens) if token.type == "heading_open"]:
        text = "".join(part.content for part in heading.children or [])
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found[anchor] += 1
        if found[anchor] > 1:
            found[f"{anchor}-{found[anchor] - 1}"] += 1
    return {*found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(page: Path) -> None:
    links = [token.attrGet("href") or token.attrGet("src") for token in parse(page)]
    for link in [str(link) for link in links if link]:
        path, _, anchor = unquote(link).partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} in {page.name}"
        assert not anchor or anchor in anchors(target), f"{link} in {page.name}"


def test_a_comment_in_a_block_of_code_is_no_anchor(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n\n```bash\n# comment\n[link](away.md)\n```\n\n## Twice\n\n## Twice\n", encoding="utf-8"
    )
    assert anchors(page) == {"a-b-c", "twice", "twice-1"}
    assert not any(token.attrGet("href") for token in parse(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_named_in_pages_exist(page: Path) -> None:
    """`bayes_rl/...`, `tests/...`, `configs/...` and `docs/...` in backticks are paths of today's tree."""
    if page.name == "CHANGELOG.md":
        return  # older versions name their own tree
    for path in re.findall(
        r"`((?:bayes_rl|tests|configs|docs|benchmarks)/[\w./-]+)`", page.read_text(encoding="utf-8")
    ):
        assert path.startswith("bayes_rl/DeepSea") or (ROOT / path).exists(), f"{path} in {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tests_named_in_pages_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert re.search(rf"^\s*def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (path, name)


def test_the_page_of_faults_has_a_row_for_every_fault_with_a_test() -> None:
    text = (ROOT / "docs/results/faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (([ABC]\d+) .*)$", text, re.MULTILINE)
    counts = {"A": 12, "B": 15, "C": 6}
    assert [number for _, number in rows] == [f"{group}{n + 1}" for group in counts for n in range(counts[group])]
    assert all("`tests/" in row for row, number in rows if number[0] in "AB")


def test_withdrawn_sentences_do_not_return() -> None:
    """Sentences of version 0.1.0 that did not hold; only the page of faults quotes them."""
    folders = ("bayes_rl", "benchmarks", "configs", "docs")
    paths = [path for folder in folders for kind in ("py", "md", "yaml") for path in (ROOT / folder).rglob(f"*.{kind}")]
    for path in {*paths, *PAGES} - {ROOT / "docs/results/faults.md"}:
        text = " ".join(path.read_text(encoding="utf-8").replace("#", " ").split())
        assert not re.search(WITHDRAWN, text), path


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for folder in ("tutorials", "concepts", "how-to", "reference", "design"):
        for page in (ROOT / "docs" / folder).glob("*.md"):
            assert f"({folder}/{page.name})" in index
    assert "(results/faults.md)" in index
    assert "(results/tables.md)" in index


def test_every_module_is_in_the_map_of_files() -> None:
    text = (ROOT / "docs/design/architecture.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "bayes_rl").rglob("*.py")):
        folder = path.parent.relative_to(ROOT / "bayes_rl").as_posix()
        if path.stem.startswith("__") or folder in ("training/callbacks", "bayes/posteriors"):
            continue  # these folders hold one callback or family each
        package = folder.split("/")[0]
        row = next((line for line in text.splitlines() if line.startswith(f"| [`{package}/`]")), "")
        assert path.stem in (row if folder != "." else text), path
