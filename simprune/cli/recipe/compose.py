"""The folders of recipes and their groups, registered with Hydra, and how a recipe is composed."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from simprune.cli.folders import builtin, recipes
from simprune.cli.recipe.bundled import READ, recipe_of
from simprune.cli.recipe.choices import BOTH, GROUPS, KEYS, rewritten, settled, shadowing, store_groups
from simprune.cli.recipe.schema import RecipeSchema, typed
from simprune.core.names import did_you_mean, importable
from simprune.core.options import shown
from simprune.core.reading import read_text, read_yaml

VERSION_BASE = "1.3"


def locate(recipe: str) -> tuple[Path, str]:
    """Folder and config name of a built-in recipe, or of a path to a recipe file; ValueError if there is none."""
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.suffix != ".yaml":
            raise ValueError(f"a recipe file ends in .yaml; got {recipe}")
        if not path.is_file():
            near = get_close_matches(path.stem, [other.stem for other in path.parent.glob("*.yaml")], n=1)
            hint = f"; did you mean {path.with_stem(near[0])}?" if near else ""
            raise ValueError(f"no recipe file {recipe}{hint}")
        content = read_yaml(read_text(path), recipe)  # Hydra reads it again, and says less about what is wrong
        if not isinstance(content, dict):
            what = "nothing" if content is None else shown(content)
            raise ValueError(f"{recipe}: expected a recipe, such as model: digits; got {what}")
        if not isinstance(content.get("defaults", []), list):
            raise ValueError(f"{recipe}: defaults: expected a list in [...]; got {shown(content['defaults'])}")
        check = content.get("check") if isinstance(content, dict) else None
        if isinstance(check, dict) and check.get("name") is not None and check.get("gates") is not None:
            raise ValueError(f"{recipe}: {BOTH}")
        return path.resolve().parent, path.stem
    if recipe not in recipes():
        own = f"; for your own file say recipe={recipe}.yaml" if Path(f"{recipe}.yaml").is_file() else ""
        raise ValueError(f"no recipe {recipe!r}; {did_you_mean(recipe, recipes())}{own}")
    return builtin("recipes"), recipe


class BuiltinConfigs(SearchPathPlugin):
    """Puts the built-in folders last, so that a user's folder of the same shape wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in ("conf", "recipes"):
            search_path.append(provider="simprune", path=f"file://{builtin(folder)}")


Plugins.instance().register(BuiltinConfigs)
ConfigStore.instance().store(name="recipe_schema", node=RecipeSchema, provider="simprune")
store_groups()


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a recipe without a command line, for notebooks and tests.

    >>> load_recipe("digits", ["budget.macs=0.3", "measure=cka"]).budget.macs
    0.3
    """
    folder, name = locate(recipe)
    importable(folder)
    changed = fitted(overrides, folder, name)
    with initialize_config_dir(str(folder), version_base=VERSION_BASE), shadowing():
        return settled(compose(name, overrides=changed), changed, folder)


def fitted(overrides: Sequence[str], folder: Path | None, name: str, more: Sequence[str] = ()) -> list[str]:
    """Overrides as Hydra takes them for one recipe, whatever folders lie beside it and whatever its defaults are.

    Args:
        overrides: as typed.
        folder: of the recipe; None for the recipe of a bundle, which lies nowhere in the search path.
        name: of the recipe in that folder.
        more: further folders in which Hydra looks for groups.
    """
    groups, typed = {*GROUPS, "finetune"}, {override.partition("=")[0] for override in overrides}
    with initialize_config_dir(str(folder or builtin("recipes")), version_base=VERSION_BASE), shadowing():
        loader = GlobalHydra.instance().config_loader()
        folders = {*loader.list_groups(""), *(path.name for other in more for path in Path(other).glob("*/"))}
        shadowed = (folders & {*KEYS}) - groups
        if not typed & groups and not shadowed:  # whatever the defaults are, whose list takes long to make
            return rewritten(overrides)
        listed = loader.compute_defaults_list(name, [], RunMode.RUN).overrides.known_choices
    choices = {group for group in listed if "/" not in group}
    return rewritten(overrides, choices, shadowed - choices)


STANDALONE = ["recipe_schema", "run", "_self_"]  # defaults list of a resolved recipe, which needs no groups


def resolved(config: DictConfig) -> dict[str, Any]:
    """The recipe with nothing left to look up, itself a recipe; it is stored with the results."""
    content = OmegaConf.to_container(typed(config), resolve=True)
    assert isinstance(content, dict)
    # a resumed run has the recipe of the run that was interrupted
    return {"defaults": list(STANDALONE), **{str(key): value for key, value in content.items()}, "resume": None}


def register_bundle_recipe(folder: str) -> str:
    """Name under which Hydra finds the recipe inside a bundle, which `recipe_of` has checked; keys not read are out."""
    content = recipe_of(folder, STANDALONE)
    OmegaConf.merge(OmegaConf.structured(RecipeSchema), content)
    content = {key: value for key, value in content.items() if key in READ}
    ConfigStore.instance().store("bundle", {"defaults": STANDALONE, **content}, provider="simprune")
    return "bundle"
