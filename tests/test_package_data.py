"""What an installed package consists of."""

import subprocess
import sys

from documents import ROOT


def test_every_file_of_the_package_is_installed(tmp_path):
    build = ["setup.py", "-q", "build_py", f"--build-lib={tmp_path}"]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    wanted, found = (
        {
            str(path.relative_to(base))
            for path in (base / "anpvs_tf").rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        for base in (ROOT, tmp_path)
    )
    assert found == wanted
    assert "anpvs_tf/reporting/templates/page.html" in found
