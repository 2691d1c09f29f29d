"""Reference of all options, written from the parser of the command line.

The directive `option-reference` takes names of sections and writes their options:

    ```{option-reference} model data
    ```

The section `run` holds the options that have no section. The directive `verb-help` takes a verb that has a parser of
its own, and writes the text of `bayes-rl VERB --help`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import types
from argparse import SUPPRESS, Action
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from docutils import nodes
from jsonargparse import capture_parser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bayes_rl.cli.app import run
from bayes_rl.cli.commands import COMMANDS, TRAINER_VERBS
from bayes_rl.cli.option_conditions import conditions


class Option(NamedTuple):
    """An option of the command line.

    Attributes:
        name: as `model.network.encoder`.
        type: in words.
        default: as in a configuration file.
        text: documentation of the option.
        group: description of the group of the option.
        verbs: verbs that have the option.
    """

    name: str
    type: str
    default: str
    text: str
    group: str
    verbs: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """Name of the group, as `model.network`; `run` for an option without a group."""
        return self.name.rpartition(".")[0] or "run"


@cache
def options() -> list[Option]:
    """Return the options of all verbs that train or play, in the order of the parser."""
    parser: Any = capture_parser(lambda: run([]))  # without a verb the parser has the options of all
    found: dict[str, Option] = {}
    verbs: dict[str, list[str]] = defaultdict(list)
    for verb in TRAINER_VERBS:
        for group, action in _actions(parser._subcommands_action.choices[verb]):
            name = action.option_strings[-1].removeprefix("--").removesuffix("+")
            verbs[name].append(verb)
            kind = type_in_words(getattr(action, "_typehint", None) or action.type or str)
            text = re.sub(r":[\w:]+:(?=`)", "", action.help or "")  # a role of reStructuredText
            found.setdefault(name, Option(name, kind, in_configuration(action.default), text, group, ()))
    return [option._replace(verbs=tuple(verbs[option.name])) for option in found.values()]


def _actions(parser: Any) -> Iterator[tuple[str, Action]]:
    """Yield the options of a parser, each with the description of its group; no help, no file of a whole group."""
    for group in parser._action_groups:
        for action in group._group_actions:
            is_setting = action.default != SUPPRESS and action.option_strings
            if is_setting:
                yield group.title, action


def type_in_words(hint: Any) -> str:
    """Return a type as a user of a configuration file knows the type, for example `list[str] or null`."""
    if hint in (None, type(None)):
        return "null"
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(argument) for argument in arguments))
    name = getattr(origin or hint, "__name__", str(hint))
    inside = ", ".join("..." if argument is ... else type_in_words(argument) for argument in arguments)
    return f"{name}[{inside}]" if inside else name


def in_configuration(value: Any) -> str:
    """Return a value as in a configuration file."""
    return value if isinstance(value, str) and value else json.dumps(value)


def markdown(sections: list[str]) -> str:
    """Return the reference of sections of options as Markdown, with a heading for each group."""
    acts = defaultdict(list)
    for condition in conditions():
        for name in condition.names:
            acts[name].append(condition.text)
    chosen = [option for option in options() if option.prefix.partition(".")[0] in sections]
    lines, prefix = [], ""
    for option in sorted(chosen, key=lambda option: sections.index(option.prefix.partition(".")[0])):
        if option.prefix != prefix:
            prefix = option.prefix
            lines += ["", f"## `{prefix}`", "", f"{option.group}." if prefix != "run" else ""]
        lines += ["", f"````{{confval}} {option.name}", f":type: `{option.type}`", f":default: `{option.default}`", ""]
        lines += [option.text, "", *(f"*Acts {text}.*\n" for text in acts[option.name])]
        if option.verbs != TRAINER_VERBS:
            lines += [f"*Option of {', '.join(option.verbs)}.*"]
        lines += ["````"]
    return "\n".join(lines)


def verb_help(verb: str) -> str:
    """Return the text of `bayes-rl VERB --help` for a verb with a parser of its own."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        COMMANDS[verb](["--help"])
    return text.getvalue()


class OptionReference(SphinxDirective):
    """Directive that writes the reference of sections of options."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the reference as nodes."""
        text = markdown(self.arguments[0].split())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class VerbHelp(SphinxDirective):
    """Directive that writes the help of a verb with a parser of its own."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the help as a block of code."""
        text = verb_help(self.arguments[0])
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("option-reference", OptionReference)
    app.add_directive("verb-help", VerbHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
