"""genotypes.py: published cells, lookup, recording as typed source."""

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_cells import changed

import genotypes
from common import checkpoint
from genotypes import check_new_name, lookup, record, to_dict, to_json, validate

RelativeNAS = genotypes.RelativeNAS


@pytest.fixture
def cells_file(tmp_path: Path) -> Path:
    """A copy of genotypes.py, to be written to."""
    return Path(shutil.copy(ROOT / "genotypes.py", tmp_path / "genotypes.py"))


def test_published_cells() -> None:
    assert genotypes.DARTS is genotypes.DARTS_V2
    # The best known one, written here a second time in the order of the paper's figure.
    assert genotypes.DARTS_V2.reduce == (
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    )
    assert genotypes.NASNet.reduce_concat == (4, 5, 6)
    for name in genotypes.names():
        assert validate(getattr(genotypes, name)) == getattr(genotypes, name), name


def test_cells_equal_the_published_file(published: dict) -> None:
    with_cell = {
        name for name, entry in published.items() if "genotype" in entry and hasattr(genotypes, name)
    }
    assert len(with_cell) == 8
    for name in with_cell:
        assert to_dict(getattr(genotypes, name)) == published[name]["genotype"], name


def test_lookup_takes_name_file_and_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps(to_dict(genotypes.AmoebaNet), indent=2))
    assert lookup("RelativeNAS") == RelativeNAS
    assert lookup(str(file)) == genotypes.AmoebaNet
    assert lookup(file) == genotypes.AmoebaNet
    assert lookup(str(tmp_path)) == genotypes.AmoebaNet
    named = tmp_path / "DARTS"
    named.mkdir()
    file.rename(named / "genotype.json")
    monkeypatch.chdir(tmp_path)
    assert lookup("DARTS") == genotypes.DARTS
    assert lookup(Path("DARTS")) == genotypes.AmoebaNet


def test_lookup_unknown_name_lists_all_and_the_closest() -> None:
    with pytest.raises(ValueError, match="did you mean RelativeNAS") as raised:
        lookup("relativnas")
    assert all(name in str(raised.value) for name in genotypes.names())
    for module_name in ("validate", "PRIMITIVES", "__name__", "json", ""):
        with pytest.raises(ValueError, match="unknown architecture"):
            lookup(module_name)


def test_lookup_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    with pytest.raises(ValueError, match="unknown architecture"):
        lookup(f"open({str(marker)!r}, 'w')".replace(os.sep, "\\x2f"))
    script = tmp_path / "cell.py"
    script.write_text(f"open({str(marker)!r}, 'w')\nGENOTYPE = None\n")
    with pytest.raises(ValueError, match=r"cell\.py: a file, but no valid JSON"):
        lookup(str(script))
    assert not marker.exists()


def test_lookup_errors_name_the_file(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text(to_json(RelativeNAS)[:50])
    with pytest.raises(ValueError, match=r"damaged\.json: no valid JSON"):
        lookup(str(damaged))
    wrong = tmp_path / "wrong.json"
    wrong.write_text(to_json(RelativeNAS).replace('["dil_conv_5x5",1]', '["dil_conv_5x5",7]', 1))
    with pytest.raises(
        ValueError, match=r"wrong\.json: normal cell, node 0, edge 1: input 7 is not one of 0\.\.1"
    ):
        lookup(str(wrong))
    binary = tmp_path / "model.pt"
    binary.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(ValueError, match=r"model\.pt: (damaged|refused)"):
        lookup(str(binary))
    large = tmp_path / "large.json"
    large.write_bytes(b"[" * (1 << 21))
    with pytest.raises(ValueError, match=r"large\.json: too large"):
        lookup(str(large))
    with pytest.raises(ValueError, match=r"missing\.json: no such file"):
        lookup(str(tmp_path / "missing.json"))
    with pytest.raises(ValueError, match=r"no genotype\.json"):
        lookup(str(tmp_path))


@pytest.mark.parametrize(
    ("cells", "number", "words"),
    [
        (0, "1", "#1: its front has no cell"),
        (1, "2", "#2: its front has one cell, 1"),
        (2, "3", "#3: its front has the cells 1 to 2"),
        (2, "x", "#x: its front has the cells 1 to 2; behind the # stands the number of one"),
        (2, "", "#: its front has the cells 1 to 2; behind the # stands the number of one"),
    ],
)
def test_a_cell_that_is_not_on_the_front(tmp_path: Path, cells: int, number: str, words: str) -> None:
    text = to_json(RelativeNAS).replace('"', '""')
    rows = [f'{row},"{text}"' for row in range(1, cells + 1)]
    (tmp_path / "front.csv").write_text("\n".join(["number,genotype", *rows]))
    with pytest.raises(ValueError, match="its front") as raised:
        lookup(f"{tmp_path}#{number}")
    assert str(raised.value) == f"{tmp_path}{words}"
    if cells:
        assert lookup(f"{tmp_path}#1") == RelativeNAS


def test_a_folder_in_place_of_the_table_of_a_front(tmp_path: Path) -> None:
    (tmp_path / "front.csv").mkdir()
    with pytest.raises(ValueError, match=r"#1: .*front\.csv is a folder"):
        lookup(f"{tmp_path}#1")


def test_the_cell_of_a_trained_network_is_in_its_card_and_its_checkpoints(tmp_path: Path) -> None:
    described = {"network": {"genotype": to_dict(RelativeNAS)}}
    (tmp_path / "card.json").write_text(json.dumps(described))
    checkpoint.save(tmp_path / "model.pt", described)
    checkpoint.save(tmp_path / "checkpoint.pt", {"network": {}, "genotype": to_dict(RelativeNAS)})
    checkpoint.save(tmp_path / "search.pt", {"kind": "search"})
    for name in ("card.json", "model.pt", "checkpoint.pt", ""):
        assert lookup(tmp_path / name) == RelativeNAS
    with pytest.raises(ValueError, match=r"search\.pt: no checkpoint that names its cell"):
        lookup(tmp_path / "search.pt")


OTHERS = os.environ | {"PYTHONPATH": str(ROOT)}  # what a copy of genotypes.py imports


def fresh(file: Path, code: str) -> str:
    """What a new Python process prints that imports this copy of genotypes.py."""
    command = [sys.executable, "-c", code]
    outcome = subprocess.run(command, cwd=file.parent, env=OTHERS, capture_output=True, text=True, check=True)
    return outcome.stdout.strip()


def test_record_appends_source_that_a_fresh_import_finds(cells_file: Path) -> None:
    before = cells_file.read_text()
    cells_file.chmod(0o640)
    record("Found_1", genotypes.AmoebaNet, cells_file)
    record("Found_2", RelativeNAS, cells_file)
    text = cells_file.read_text()
    assert text.startswith(before)
    assert text.endswith(")\n")
    assert stat.S_IMODE(cells_file.stat().st_mode) == 0o640
    assert list(cells_file.parent.iterdir()) == [cells_file]  # no temporary file stays
    assert ast.unparse(ast.parse(text).body[-1]).startswith("Found_2 = Genotype(normal=(('sep_conv_3x3', 0)")
    code = "from genotypes import *; print(lookup('Found_1') == AmoebaNet, lookup('Found_2') == RelativeNAS)"
    assert fresh(cells_file, code) == "True True"


def test_recorded_source_is_laid_out_like_typed(cells_file: Path) -> None:
    genotype = RelativeNAS._replace(reduce_concat=(5,))  # a tuple of one needs its comma
    record("Found", genotype, cells_file)
    assert fresh(cells_file, "import genotypes; print(genotypes.Found.reduce_concat)") == "(5,)"
    config = ["--config", str(ROOT / "pyproject.toml")]
    ruff = shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("ruff is not installed")
    for command in (["format", "--check"], ["check"]):
        result = subprocess.run([ruff, *command, *config, str(cells_file)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DARTS", "has that name"),
        ("lookup", "has that name"),
        ("keyword", "has that name"),
        ("Path", "has that name"),
        ("edges", "has that name"),
        ("class", "no word of Python"),
        ("match", "no word of Python"),
        ("print", "no word of Python"),
        ("None", "no word of Python"),
        ("9lives", "begins with a letter"),
        ("a-b", "begins with a letter"),
        ("a.b", "begins with a letter"),
        ("a b", "begins with a letter"),
        ("a\nimport os", "begins with a letter"),
        ("", "begins with a letter"),
        ("_private", "begins with a letter"),
        ("__all__", "begins with a letter"),
        ("ＤＡＲＴＳ", "begins with a letter"),  # full-width letters, which Python reads as DARTS
    ],
)
def test_record_refuses_names(cells_file: Path, name: str, message: str) -> None:
    before = cells_file.read_bytes()
    with pytest.raises(ValueError, match=message):
        check_new_name(name, cells_file)
    with pytest.raises(ValueError, match=message):
        record(name, RelativeNAS, cells_file)
    assert cells_file.read_bytes() == before


def test_record_refuses_wrong_cells_and_foreign_files(cells_file: Path, tmp_path: Path) -> None:
    before = cells_file.read_bytes()
    with pytest.raises(ValueError, match="normal cell, node 2, edge 1"):
        record("Found", changed("normal", 5, ("sep_conv_3x3", 5)), cells_file)
    assert cells_file.read_bytes() == before
    foreign = tmp_path / "foreign.py"
    for text, message in (("x = (", "not valid Python"), ("x = 1\n", "where Genotype is defined")):
        foreign.write_text(text)
        with pytest.raises(ValueError, match=message):
            record("Found", RelativeNAS, foreign)
        assert foreign.read_text() == text
    with pytest.raises(FileNotFoundError):
        record("Found", RelativeNAS, tmp_path / "missing.py")


def test_record_keeps_the_file_where_the_disk_is_full(
    cells_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cells_file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        record("Found", RelativeNAS, cells_file)
    assert cells_file.read_bytes() == before
    assert list(cells_file.parent.iterdir()) == [cells_file]


def test_record_through_a_link_keeps_the_link(cells_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(cells_file)
    record("Found", RelativeNAS, link)
    assert link.is_symlink()
    assert "Found = Genotype(" in cells_file.read_text()


def test_two_processes_record_at_once(cells_file: Path) -> None:
    code = "import genotypes as g, sys\nfor i in range(5): g.record(f'{sys.argv[1]}{i}', g.PDARTS)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=cells_file.parent, env=OTHERS)
        for name in ("One", "Two")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    found = fresh(cells_file, "import genotypes; print(*genotypes.names()[-10:])").split()
    assert sorted(found) == [f"{name}{number}" for name in ("One", "Two") for number in range(5)]
