"""Every test file belongs to exactly one tier, and each tier can run with what its environment installs.

A tier is a folder (see CONTRIBUTING.md): pytest enters those of ``norecursedirs`` only where a make target names them.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDERS = ROOT / "tests", ROOT / "papers" / "tests"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The tiers outside `make test`: folder, make target, and the packages that only this tier's environment has.
OTHERS = {
    "frameworks": ("test-frameworks", {"accelerate", "lightning", "ray", "torch_geometric"}),
    "vision": ("test-vision", {"torchvision"}),
}


def tier_of(file):
    return next((name for name in OTHERS if (ROOT / "tests" / name) in file.parents), "test")


def all_files():
    return sorted(file for folder in FOLDERS for file in folder.rglob("test_*.py"))


def imports(file):
    """The top-level names of all packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_pytest_without_arguments_runs_the_first_tier_and_nothing_else():
    skipped = SETTINGS["tool"]["pytest"]["ini_options"]["norecursedirs"]
    assert {name for name in skipped if not name.startswith(".") and name not in ("build", "dist")} == set(OTHERS)
    inside = [file for file in all_files() if not set(file.relative_to(ROOT).parts) & set(skipped)]
    assert inside == [file for file in all_files() if tier_of(file) == "test"]
    # A folder of this name further down would belong to no tier: neither pytest nor a target would enter it.
    for name in OTHERS:
        assert [found for folder in FOLDERS for found in folder.rglob(name)] == [ROOT / "tests" / name]


def test_pytest_collects_by_these_rules():
    """The rule above is ours; this asks pytest itself, on files that cost nothing to import."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-k", "test_tiers", "-p", "no:xdist"]
        + [f"--ignore={file}" for file in all_files() if tier_of(file) == "test" and file != Path(__file__)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "tests/test_tiers.py" in run.stdout
    assert not any(f"tests/{name}/" in run.stdout for name in OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_each_other_tier_is_a_folder_with_a_target_that_ci_runs(name):
    target, _ = OTHERS[name]
    assert [file for file in all_files() if tier_of(file) == name]
    makefile = (ROOT / "Makefile").read_text()
    rule = re.search(rf"^{target}:.*\n(?:\t.*\n)+", makefile, flags=re.M)
    variables = dict(re.findall(r"^(\w+) [?:]?= ((?:.*\\\n)*.*)$", makefile, flags=re.M))
    command = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], rule[0])
    assert f"tests/{name}" in command
    assert re.search(rf"^tier {target}\b", (ROOT / ".ci" / "run").read_text(), flags=re.M)
    assert f"make {target}" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_paths_that_targets_name_exist():
    for path in re.findall(r"(?<![\w/])((?:tests|benchmarks|docs)/[\w./]+)", (ROOT / "Makefile").read_text()):
        assert (ROOT / path).exists() or path == "docs/gpu_results.md", path


@pytest.mark.parametrize("file", all_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_what_its_tier_installs(file):
    foreign = {package: name for name, (_, packages) in OTHERS.items() for package in packages}
    wrong = {package for package in imports(file) if foreign.get(package, tier_of(file)) != tier_of(file)}
    assert not wrong, f"{file.name} imports {sorted(wrong)}: it belongs into tests/{foreign[min(wrong)]}"


def test_fuzz_tests_take_their_number_of_cases_from_the_environment():
    for file in (ROOT / "tests" / "fuzz").glob("test_*.py"):
        text = file.read_text()
        assert "FLATWISE_FUZZ_EXAMPLES" in text or "fuzzing" in set(imports(file)), file.name
