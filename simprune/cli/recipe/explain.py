"""Errors of Hydra and OmegaConf about a recipe in one line, with the name that was probably meant."""

import dataclasses
import re

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from simprune.cli.recipe.choices import GROUPS
from simprune.core.names import did_you_mean


def explain(error: BaseException) -> str | None:
    """One line for an error in composing a recipe, with the name that was probably meant; None for any other error."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        what = f"{group} has no option {name!r}" if group else f"no recipe or config {name!r}"
        if group.startswith("hydra/"):
            extras = "pip install 'simprune[sweep]' for joblib and optuna, 'simprune[cluster]' for submitit and ray"
            return f"{what} installed; {extras}"
        return f"{what}; {did_you_mean(name, error.options or [])}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: expected key=value"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        return f"{where}not valid YAML: {error.problem}"
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return f"a file of the recipe is not valid YAML in UTF-8: {' '.join(str(error).split())}"
    cause = _cause(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return f"there is no key {cause.full_key!r}; {_meant(cause)}"
    text = str(cause or error).partition("\n")[0]
    if cause is not None:
        return f"{cause.full_key}: {_readable(text)}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        group = re.search(r"Could not override '(\w+)'", text)
        return f"{text} {did_you_mean(group[1], [*GROUPS, 'finetune'])}" if group else text
    return None


def _cause(error: BaseException | None) -> OmegaConfBaseException | None:
    """The first error in the chain of causes that knows the key it is about."""
    while error is not None:
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _meant(error: OmegaConfBaseException) -> str:
    """Keys like the unknown one, and how to add a key where a recipe may have keys of its own."""
    if dataclasses.is_dataclass(error.object_type):
        return did_you_mean(str(error.key), [key.name for key in dataclasses.fields(error.object_type)])
    known = [str(key) for key in error.parent_node or [] if key != "_target_"]
    hint = did_you_mean(str(error.key), known)
    return hint if hint.endswith("?") else f"{hint}; to add a key write +{error.full_key}=..."


EXPECTED = {
    r"Value '(.*)' of type '\w+' could not be converted to Float": "a number",
    r"Value '(.*)' of type '\w+' could not be converted to Integer": "a whole number",
    r"Value '(.*)' is not a valid bool .*": "true or false",
    r"Cannot merge DictConfig with (List)Config": "a mapping, as the recipe that this one inherits from has",
    r"Invalid value assigned: (\w+) is not a ListConfig.*": "a list in [...]",
    r"Invalid value assigned: (\w+) is not a DictConfig.*": "a mapping in {...}",
}


def _readable(text: str) -> str:
    """An error of OmegaConf about a value, in the words of simprune."""
    for pattern, expected in EXPECTED.items():
        if match := re.fullmatch(pattern, text):
            return f"expected {expected}; got {match[1]}"
    return text
