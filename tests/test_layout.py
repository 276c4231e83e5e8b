"""The package that is built is the tree that is written, under the one name ``overlapc``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("passes", "codegen")
IMPORT_BOTH = """
for name in ("passes", "codegen"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"import {name} went through")
"""


MOST_LINES = 500
"""Of a Python file, which has one idea."""


def declared_packages(root: Path) -> tuple[list[str], Mapping[str, str]]:
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    return setuptools["packages"], setuptools["package-dir"]


def packages_in_tree(root: Path, roots: Mapping[str, str]) -> set[str]:
    """Every folder under the mapped roots with a file of its own, as a dotted name."""
    found = set()
    for package, folder in roots.items():
        for path in (root / folder).rglob("*"):
            inside = path.parent.relative_to(root / folder)
            # Links lead to folders that have a mapping of their own.
            linked = any(
                (root / folder / parent).is_symlink() for parent in [inside, *inside.parents]
            )
            if path.is_file() and path.suffix != ".pyc" and not (linked and inside.parts):
                found.add(".".join((package, *inside.parts)))
    return found


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_declared_packages_are_those_in_the_tree():
    packages, roots = declared_packages(ROOT)
    assert sorted(packages) == sorted(packages_in_tree(ROOT, roots))


def test_no_file_has_more_lines_than_one_idea_takes():
    """Mutant: a limit of 498."""
    places = ("overlapc", *LINKS, "tests", "benchmarks", "examples")
    files = {path.resolve() for place in places for path in (ROOT / place).rglob("*.py")}
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_a_forgotten_package_is_noticed(tmp_path):
    for folder in ("overlapc/new", "passes"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "overlapc/passes").symlink_to("../passes")
    roots = {"overlapc": "overlapc", "overlapc.passes": "passes"}
    assert packages_in_tree(tmp_path, roots) == {"overlapc.new", "overlapc.passes"}


@pytest.mark.parametrize("name", LINKS)
def test_the_links_are_in_place_and_relative(name):
    link = ROOT / "overlapc" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"
    assert link.samefile(ROOT / name)


@pytest.mark.parametrize("cwd", [ROOT, Path("/")], ids=["root", "elsewhere"])
def test_bare_names_cannot_be_imported(cwd):
    run(sys.executable, "-c", IMPORT_BOTH, cwd=cwd)


def test_a_bare_name_that_can_be_imported_is_noticed(tmp_path):
    (tmp_path / "codegen.py").touch()
    with pytest.raises(AssertionError, match="import codegen went through"):
        run(sys.executable, "-c", IMPORT_BOTH, cwd=tmp_path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that comes out of the source distribution, built without a network."""
    work = tmp_path_factory.mktemp("build")
    out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, work / "source", symlinks=True, ignore=out)
    run(sys.executable, "-m", "build", "--no-isolation", "-o", work, work / "source", cwd=work)
    (path,) = work.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"overlapc"}
    kept = {str(Path(name).parent).replace("/", ".") for name in names if "dist-info" not in name}
    assert kept == set(declared_packages(ROOT)[0])
    for needed in ("overlapc/py.typed", "overlapc/planning/targets/cpu.json"):
        assert needed in names


def test_a_clean_installation_imports_from_anywhere(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path, cwd=tmp_path)
    python = tmp_path / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(sys.executable, *install, "--no-compile", wheel, cwd=tmp_path)
    # Dependencies come from the environment of the tests; its own .pth files are not followed.
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path))
    here = sysconfig.get_paths()["purelib"]
    Path(str(site).strip(), "dependencies.pth").write_text(f"{here}\n")

    probe = "import overlapc, overlapc.passes, overlapc.codegen as codegen\n"
    probe += "print(overlapc.__file__, codegen.__file__)\n" + IMPORT_BOTH
    found = run(python, "-c", probe, cwd=Path("/"))
    assert all(path.startswith(str(tmp_path)) for path in found.split())
    assert "overlapc" in run(tmp_path / "bin" / "overlapc", "--help", cwd=Path("/"))
    backends = (
        "import importlib.metadata as m; print(m.entry_points(group='torch_dynamo_backends'))"
    )
    assert "overlapc.backend:backend" in run(python, "-c", backends, cwd=Path("/"))
