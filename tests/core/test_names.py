"""Names that people type."""

import sys

import pytest

from simprune.core.names import did_you_mean, fit, locate, resolve


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a user's package; what is imported from it is forgotten afterwards."""
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text("LIMIT = 3\ndef build(width=4):\n    return width\n")
    (package / "broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("some_package"):
            del sys.modules[name]


def test_a_function_in_the_working_folder_is_found(folder):
    assert resolve("some_package.models:build")(width=7) == 7


def test_a_module_written_after_a_failed_lookup_is_found(folder):
    with pytest.raises(ValueError, match="late_module"):
        resolve("some_package.late_module:f")
    (folder / "some_package" / "late_module.py").write_text("def f():\n    return 1\n")
    assert resolve("some_package.late_module:f")() == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("some_package.models", "package.module:function"),
        (":build", "package.module:function"),
        ("some_packag.models:build", "did you mean 'some_package'"),
        ("some_package.modles:build", "did you mean 'models'"),
        ("some_package.models:biuld", "did you mean 'build'"),
        ("some_package.models:LIMIT", "is a int; expected a function"),
        ("some_package.broken:f", "importing some_package.broken failed: ModuleNotFoundError.*not_installed"),
        ("qqqqqqqq:f", "no module 'qqqqqqqq'.*install it"),
    ],
)
def test_what_is_not_found_is_named(folder, name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_dotted_paths_reach_class_attributes_and_submodules():
    assert locate("pathlib.Path.cwd")
    assert locate("torch.nn.functional.relu")


def test_arguments_are_checked_before_the_call():
    def build(width, depth=1):
        raise AssertionError

    fit(build, ["width", "depth"], "build")
    with pytest.raises(ValueError, match="did you mean 'width'"):
        fit(build, ["widht"], "build")
    with pytest.raises(ValueError, match="missing a required argument: 'width'"):
        fit(build, [], "build")


def test_suggestions_are_near_or_all():
    assert did_you_mean("ckaa", ["cka", "rsa"]) == "did you mean 'cka'?"
    assert did_you_mean("x", []) == "known: none"
    assert "and 8 more" in did_you_mean("x", [f"measure{i}" for i in range(20)])
