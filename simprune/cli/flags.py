"""Arguments of a command, sorted into overrides, Hydra's flags and the recipe."""

from collections.abc import Iterator

from simprune.core.names import did_you_mean
from simprune.settings import recipe_table

# Hydra's flags that make sense here, and the values that a flag takes: none, some, or (None) any
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FLAGS: dict[str, tuple[str, ...] | None] = {
    "--cfg": CFG, "-c": CFG, "--info": INFO, "-i": INFO,
    "--config-dir": None, "-cd": None, "--package": None, "-p": None,
    "--multirun": (), "-m": (), "--resolve": (), "--hydra-help": (),
    "--frontier": (),
}  # fmt: skip


def split(args: list[str]) -> tuple[list[str], list[str], str | None]:
    """(overrides, Hydra's flags, recipe): Hydra 1.3 wants all overrides on one side of its flags."""
    overrides, flags, recipe = [], [], None
    rest = iter(args)
    for arg in rest:
        if arg.startswith("-"):
            flags += _flag(arg, rest)
        elif arg.startswith("recipe="):
            recipe = arg.partition("=")[2]
        elif "=" in arg or arg.startswith("~"):
            overrides.append(arg)
        else:
            raise ValueError(f"cannot read {arg!r}: expected {_example(arg)}")
    return overrides, flags, recipe


def _example(arg: str) -> str:
    return f"{arg}=VALUE" if _is_key(arg) else f"key=value, such as recipe={arg}"


def _is_key(text: str) -> bool:
    """Whether a text is a key of recipes, or one of a key's own options."""
    head = text.partition(".")[0]
    return head == "recipe" or any(entry.name == head for entry in recipe_table())


def _flag(arg: str, rest: Iterator[str]) -> list[str]:
    """A flag and its value, which may follow as an argument of its own."""
    flag, equals, value = arg.partition("=")
    if flag not in FLAGS and _is_key(key := flag.lstrip("-").replace("-", "_")):
        raise ValueError(f"no flag {flag}; write {key}={value or 'VALUE'}, without dashes")
    if flag not in FLAGS:
        raise ValueError(f"no flag {flag}; {did_you_mean(flag, FLAGS)}")
    allowed = FLAGS[flag]
    if allowed == ():
        return [arg]
    value = value if equals else next(rest, "")
    if not value or (allowed is not None and value not in allowed):
        raise ValueError(f"{flag} expects {' or '.join(allowed or ('a value',))}; got {value or 'nothing'}")
    return [flag, value]
