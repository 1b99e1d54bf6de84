"""One name for the core wherever FluxFit is opened from, and a package that stands alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(path or ""), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where ``pip install .`` lays FluxFit, without what it needs."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "FluxFit"
    source.mkdir()  # building writes beside what it builds
    files = ["__init__.py", "__main__.py", "LICENSE", "README.md", "pyproject.toml"]
    folders = ["assets", "batch", "cli", "flux_core", "locales", "nodes", "workflows"]
    for item in (*files, "requirements.txt", *folders):
        (source / item).symlink_to(ROOT / item)
    done = python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(folder),
        str(source),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_package_holds_what_runs_and_nothing_else(installed):
    folders = {path.name for path in installed.iterdir()}
    assert {"flux_core", "fluxfit", "bin"} <= folders
    assert not folders & {"nodes", "cli", "batch", "tests", "tools", "benchmarks", "assets"}
    inner = {path.name for path in (installed / "fluxfit").iterdir() if path.is_dir()}
    assert inner - {"__pycache__"} == {"assets", "batch", "cli", "locales", "nodes", "workflows"}
    for shown in ("locales", "nodes/web"):
        files = {path.relative_to(ROOT) for path in (ROOT / shown).rglob("*") if path.is_file()}
        package = installed / "fluxfit"
        assert files and all((package / path).is_file() for path in files)
    modules = {path.relative_to(ROOT) for path in (ROOT / "flux_core").rglob("*.py")}
    assert modules == {p.relative_to(installed) for p in (installed / "flux_core").rglob("*.py")}


def test_the_script_runs_a_workflow_in_an_empty_folder(installed, tmp_path):
    script = str(installed / "bin" / "fluxfit")
    done = python(
        script,
        "run",
        "text_to_image.json",
        "--set",
        "FluxSampler.steps=1",
        cwd=tmp_path,
        path=installed,
    )
    assert done.returncode == 0, done.stderr
    assert "picture: " in done.stdout
    assert len(list((tmp_path / "output").rglob("*.png"))) == 1
    done = python(script, "run", "nothing.json", cwd=tmp_path, path=installed)
    assert done.returncode == 3 and "FluxFit brings" in done.stderr


def test_help_does_not_wait_for_torch(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['fluxfit', '--help']; sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT)!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    assert 'torch' not in sys.modules\n"
        "else:\n"
        "    raise AssertionError('help did not end the program')\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and "quantize" in done.stdout, done.stderr


def test_the_version_is_that_of_the_core(tmp_path):
    import flux_core

    done = python(str(ROOT), "--version", cwd=tmp_path)
    assert done.stdout == f"fluxfit {flux_core.__version__}\n"


class TestTheCore:
    """As a host opens the folder: by its path, under a name of its own."""

    OPEN = (
        "import importlib.util, sys\n"
        f"root = {str(ROOT)!r}\n"
        "spec = importlib.util.spec_from_file_location('Strange-Name', root + '/__init__.py',"
        " submodule_search_locations=[root])\n"
        "package = importlib.util.module_from_spec(spec)\n"
        "sys.modules[spec.name] = package\n"
        "spec.loader.exec_module(package)\n"
        "mappings = package.NODE_CLASS_MAPPINGS\n"
        "assert 'FluxSampler' in mappings and hasattr(package, 'NODE_DISPLAY_NAME_MAPPINGS')\n"
        "assert not hasattr(package, 'WEB_DIRECTORY_OF_ANOTHER')\n"
    )

    def test_it_has_one_name_in_a_host(self, tmp_path):
        code = self.OPEN + (
            "import flux_core\n"
            "assert sys.modules['Strange-Name.nodes.sampler'].DrawRequest is "
            "sys.modules['flux_core.sampling.run'].DrawRequest\n"
            "assert [n for n in sys.modules if n.endswith('flux_core')] == ['flux_core']\n"
            "try:\n"
            "    importlib.import_module('Strange-Name.flux_core')\n"
            "except ImportError as error:\n"
            "    assert 'import flux_core by that name' in str(error)\n"
            "else:\n"
            "    raise AssertionError('a second copy was imported')\n"
        )
        done = python("-c", "import importlib\n" + code, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    def test_that_of_the_folder_comes_before_one_that_is_installed(self, installed, tmp_path):
        code = self.OPEN + f"import flux_core; assert flux_core.__file__.startswith({str(ROOT)!r})"
        done = python("-c", code, cwd=tmp_path, path=installed)
        assert done.returncode == 0, done.stderr

    def test_another_version_that_is_imported_already_is_told(self, tmp_path):
        other = tmp_path / "flux_core"
        other.mkdir()
        (other / "__init__.py").write_text("__version__ = '0.0.1'")
        code = "import flux_core\n" + self.OPEN
        done = python("-c", code, cwd=tmp_path, path=tmp_path)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert "flux_core 0.0.1" in last and str(other) in last
