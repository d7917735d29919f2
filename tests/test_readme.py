"""The README is true: its files are written, its commands are run in order, and what it names exists."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from nnc import cli, passes, recipe, target

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")

#: Commands of the shell that only set the stage.
STAGE = (". .venv/bin/activate", "cp targets/")


def files() -> dict[str, str]:
    """The files that the README spells out: a line with the name, and a block."""
    found = re.findall(r"^`([\w.-]+)`\n\n```(?:toml|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return dict(found)


def commands() -> list[str]:
    return re.findall(r"^\$ (.*)$", README, re.MULTILINE)


def test_the_readme_has_files_and_commands() -> None:
    assert set(files()) == {"recipe.toml", "smaller.toml", "my_passes.py", "cap.toml"}
    assert len(commands()) > 10
    assert len(files()["my_passes.py"].splitlines()) <= 27


def test_every_recipe_is_one(tmp_path: Path) -> None:
    """Those without passes of one's own."""
    blocks = re.findall(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for name in ("calibration.npz", "test.npz", "train.npz"):
        (tmp_path / name).touch()
    for block in blocks:
        if "use = " not in block:
            (tmp_path / "block.toml").write_text(block)
            assert recipe.load(str(tmp_path / "block.toml")).passes


@pytest.mark.slow
def test_every_command_runs(
    tmp_path: Path, written_example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written_example, tmp_path, dirs_exist_ok=True)
    shutil.copytree(ROOT / "targets", "targets")
    for name, content in files().items():
        Path(name).write_text(content)  # recipe.toml is another than the example's
    for command in commands():
        words = shlex.split(command)
        if words[:3] == ["nnc", "run", "board"] and not shutil.which("qemu-aarch64"):
            continue
        if words[0] == "nnc":
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == 0, f"{command}\n{capsys.readouterr().err}"
        elif words[0] == "cp":
            shutil.copy(*words[1:])
        else:
            assert command.startswith(STAGE)
    assert Path("board/module.so").exists()
    assert "cap-activations" in Path("capped/report.json").read_text()


def test_what_it_names_exists() -> None:
    for path in re.findall(r"`((?:compiler|passes|recipes|targets|tests)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`nnc/([\w./]+)`", README):
        assert (ROOT / "compiler" / path).exists(), path
    for name in re.findall(r"nnc (?:compile|plan) ([a-z-]+) ", README):
        assert name in recipe.names(), name
    for name in re.findall(r"--target ([a-z][\w-]*)", README):
        assert name in (*target.names(), "my-board"), name
    known = {each.name for each in passes.PASSES} | {"cap-activations"}
    assert set(re.findall(r'^name = "([\w-]+)"', README, re.MULTILINE)) <= known


def test_every_command_is_told_of() -> None:
    """Or why have it: `nnc example` is what `make demo` calls."""
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert {name for name in known if not re.search(rf"nnc {name}\b", README)} == {"example"}
    goals = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make (\w+)", README, re.MULTILINE)) <= goals
