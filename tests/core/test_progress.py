"""Progress of long work."""

import subprocess
import sys

from simprune.core.progress import progress


def test_items_pass_and_rich_is_imported_only_for_a_bar():
    assert list(progress([1, 2], "counting")) == [1, 2]
    code = "import sys, simprune.core.progress; assert not any(name.startswith('rich') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
