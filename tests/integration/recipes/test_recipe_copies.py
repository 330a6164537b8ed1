"""A copy of the tree runs its own code, and names the files that were changed in it."""

from __future__ import annotations

from pathlib import Path

from tests.support.recipes import changed_files, copy_tree, run


def test_a_copy_runs_its_own_code_and_lists_what_was_changed(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    assert changed_files(tree) == []
    (tree / "mario/made_up.py").write_text("VALUE = 7\n")
    errors = tree / "mario/errors.py"
    errors.write_text(errors.read_text() + "\nVALUE = 8\n")
    (tree / "README.md").unlink()
    (tree / "runs").mkdir()
    (tree / "runs/mario.db").touch()
    assert changed_files(tree) == ["README.md", "mario/errors.py", "mario/made_up.py"]
    question = (
        "import flows, mario.made_up, mario.errors, mario.game._native as native, subprocess, sys; "
        "print(mario.made_up.VALUE, mario.errors.VALUE, native.__file__, flows.__file__); "
        "subprocess.run([sys.executable, '-c', 'import mario.made_up as m; print(m.__file__)'])"
    )
    said = run(tree, "-c", question).split()
    assert said[:2] == ["7", "8"]
    assert len(said) == 5
    assert all(Path(file).is_relative_to(tree) for file in said[2:]), said
