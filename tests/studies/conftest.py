"""Small images for studies, in a file as users have them, and networks that are trained once for all tests."""

import numpy as np
import pytest

import simprune as sp
from simprune.core.registry import find
from simprune.report.study import CHARTS
from simprune.studies.frame import Run
from simprune.studies.images import read_images


@pytest.fixture(scope="session")
def images_file(tmp_path_factory):
    """A few digits of four classes."""
    images = read_images().only(range(4))
    path = tmp_path_factory.mktemp("images") / "images.npz"
    arrays = {"train_images": images.train, "train_labels": images.train_labels}
    arrays |= {"test_images": images.test[:120], "test_labels": images.test_labels[:120]}
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})
    return path


@pytest.fixture(scope="session")
def run_study(tmp_path_factory, images_file):
    """Runs a study on the small images; all of them share one folder, and so their networks."""
    folder = tmp_path_factory.mktemp("studies")

    def run(name, **options):
        return sp.study(name, **({"folder": folder, "data": images_file, "quick": True} | options))

    run.folder = folder
    return run


@pytest.fixture(scope="session")
def compute(tmp_path_factory, images_file):
    """Gives the findings of a study on the small images; its figures are drawn, but no file is, which takes longer."""
    folder = tmp_path_factory.mktemp("findings")

    def findings_of(name, models=(), training=None, **options):
        part = find("study", name)
        folders = folder / name, folder / "networks"
        run = Run(*folders, quick=True, data=str(images_file), models=models, training=training)
        findings = part.make(run, **(part.options | dict(part.facts["quick"]) | options))
        for figure in findings.to_dict()["figures"]:
            CHARTS[figure["chart"]](**figure["data"])
        return findings

    return findings_of
