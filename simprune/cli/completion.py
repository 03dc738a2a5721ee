"""Completion in bash and zsh: commands, recipes, keys and values; imports no torch, so that a tab takes no time.

Names of parts are read from the text of simprune's files. Those of other packages are not offered.
"""

import re
from collections.abc import Iterable
from typing import Literal, get_args, get_origin, get_type_hints

from simprune.cli.folders import PACKAGE, recipes
from simprune.cli.help import DETAILS, LISTED
from simprune.core.options import listed
from simprune.core.registry import FOLDERS
from simprune.settings import Recipe, Study, group, recipe_table

SCRIPT = """\
_simprune() {
    local line=${COMP_LINE:0:$COMP_POINT}
    local word=${line##* }
    COMPREPLY=($(compgen -W "$(simprune --shell-completion "query=$line")" -- "$word"))
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then  # bash has split the word there
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
}
complete -o nospace -F _simprune simprune"""


def complete(request: str) -> str:
    """The output of `simprune --shell-completion REQUEST`: the script to install, or words for a line typed so far.

    >>> complete("query=simprune comp")
    'analyze plan compress validate export study list'
    """
    what, _, value = request.partition("=")
    if what == "install" and value == "bash":
        return SCRIPT
    if what == "install" and value == "zsh":
        return f"autoload -U +X bashcompinit && bashcompinit\n{SCRIPT}"
    if what != "query":
        raise ValueError(f"--shell-completion expects install=bash or install=zsh; got {request or 'nothing'}")
    words = value.split(" ")
    return " ".join(_words(words[1:-1], words[-1]))


def _words(before: list[str], word: str) -> Iterable[str]:
    """Words that may stand after those before, with which `word` may be replaced."""
    if not before:
        return DETAILS
    command = before[0]
    if command == "list":
        return LISTED
    if command not in DETAILS:
        return ()
    key, equals, _ = word.partition("=")
    if command == "study":
        if not equals:
            return ["recipe=", *(f"{option.name}=" for option in listed(Study))]
        return [f"{key}={value}" for value in {"recipe": _parts("study"), "quick": ("true", "false")}.get(key, ())]
    if not equals:
        keys = ["recipe="]
        for option in recipe_table(command):
            inner = get_type_hints(group(option) or object)
            keys.append(f"{option.name}=")
            keys += [f"{option.name}.{name}=" for name in inner if name.islower() and name != "options"]
        return keys
    return [f"{key}={value}" for value in _values(key)]


def _values(key: str) -> Iterable[str]:
    """Values that an option may have, where they are few."""
    if key == "recipe":
        return recipes()
    head, _, inner = key.partition(".")
    known = {option.name: option for option in recipe_table()}
    if head not in known:
        return ()
    owner = (group(known[head]) if inner else Recipe) or Recipe
    hint = get_type_hints(owner).get(inner or head)
    if get_origin(hint) is Literal:
        return get_args(hint)
    kind = known[head].metadata["kind"]
    return _parts(kind) if kind and not inner else ("true", "false") if hint is bool else ()


def _parts(kind: str) -> list[str]:
    """Names of a kind's parts, as the files register them."""
    named = r'^    id\b.* = "(\w+)"' if kind in ("measure", "functional") else rf'@register\("{kind}", "(\w+)"'
    files = [path for folder in FOLDERS[kind] for path in (PACKAGE.parent / folder.replace(".", "/")).glob("*.py")]
    return sorted({name for path in files for name in re.findall(named, path.read_text(encoding="utf-8"), re.M)})
