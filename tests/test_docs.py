"""README.md and docs/: links lead somewhere, commands are right, figures are those of the records."""

import contextlib
import csv
import functools
import importlib.util
import io
import json
import math
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch.distributed.run
from conftest import ROOT
from PIL import Image

import genotypes
from common.flags import parse

sys.path.insert(0, str(ROOT / "benchmarks"))  # its scripts import each other

RECORDS = ROOT / "benchmarks" / "records"
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results.md"
MANUAL = [README, *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*MANUAL, ROOT / "CHANGELOG.md", ROOT / "LOG.md", RECORDS / "README.md", *RECORDS.glob("*/README.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TORCHRUN = torch.distributed.run.get_args_parser()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


# --- links


def anchors(page: Path) -> set[str]:
    """What a link may name behind #, as GitHub derives it from the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if (
            not target.exists()
            or not target.is_relative_to(ROOT)
            or (anchor and anchor not in anchors(target))
        ):
            broken.append(link)
    assert not broken


def test_the_readme_leads_to_every_page() -> None:
    assert {name_of(page) for page in MANUAL[1:]} <= {link.partition("#")[0] for link in links(README)}


def test_every_record_is_listed() -> None:
    listed = {link.strip("/") for link in links(RECORDS / "README.md") if not link.startswith("..")}
    assert listed == {path.name for path in RECORDS.iterdir() if path.is_dir()}


# --- commands


class Command(NamedTuple):
    """A command line of a page, as words."""

    page: str
    words: tuple[str, ...]

    def split(self) -> tuple[str, list[str]]:
        """The script that it starts, and the flags that this script gets."""
        if self.words[0] == "python":
            return self.words[1], list(self.words[2:])
        started = TORCHRUN.parse_args(self.words[1:])
        return started.training_script, started.training_script_args

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(page: Path) -> list[Command]:
    """Every line of the blocks of shell code; in the text, what stands in backquotes and starts a script."""
    blocks = [body for language, body in FENCE.findall(page.read_text()) if language == "sh"]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|torchrun|make) [^`]*[^`.])`", prose(page))
    split = (shlex.split(line, comments=True) for line in lines)
    return [Command(name_of(page), tuple(words)) for words in split if words]


COMMANDS = list(dict.fromkeys(command for page in MANUAL for command in commands(page)))
STARTED = [command for command in COMMANDS if command.words[0] in ("python", "torchrun")]


@functools.cache
def script(path: str) -> ModuleType:
    """A script by its path: Python's standard library has a package `test` too."""
    specification = importlib.util.spec_from_file_location(f"docs_{Path(path).stem}", ROOT / path)
    assert specification is not None, path
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def visitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who follows the pages: what the commands take for granted is there."""
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(6):
                image = Image.fromarray(np.full((40, 36, 3), 40 * number + 20 * label, dtype=np.uint8))
                image.save(tmp_path / "images" / part / name / f"{number}.png")
    for name in ("scan1.png", "scan2.png"):
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "RUN").mkdir()
    for file in (tmp_path / "RUN" / "genotype.json", tmp_path / "cell.json"):
        file.write_text(genotypes.to_json(genotypes.lookup("DARTS")))
    (tmp_path / "trained_model").symlink_to(ROOT / "trained_model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", STARTED, ids=str)
def test_every_command_is_accepted(
    command: Command, visitor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as that can be said before it has data, a GPU or a network; runs under runs/ are imagined."""
    path, given = command.split()
    for word in given:
        if word.startswith("runs/") and Path(word).suffix == "":
            Path(word).mkdir(parents=True)
            (Path(word) / "genotype.json").write_text((visitor / "cell.json").read_text())
    try:
        parse(script(path).Config, given)
    except SystemExit as stop:
        if stop.code not in (0, None):  # 0: --help
            pytest.fail(capsys.readouterr().err)


def test_every_other_command_is_a_target_of_make() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    others = [command for command in COMMANDS if command not in STARTED]
    assert len(others) >= 2
    for command in others:
        assert command.words[0] == "make", command
        assert command.words[1] in targets, command


SMALL = {
    "train_search.py": "--images 12 --batch_size 6 --pop_size 2 --generations 1 --finalists 1 "
    "--final_epochs 1",
    "train.py": "--epochs 1",
}


def on_small_settings(path: str, given: list[str], number: int) -> str:
    """Flags that make a training or a search short, in a folder of its own; they come last and win."""
    if path not in SMALL or "--resume" in given:
        return ""
    flags = [SMALL[path]]
    flags += [] if "--weights" in given else ["--init_channels 4 --layers 3"]
    flags += ["--batch_size 6"] if "folder" in given else []
    flags += [] if "--save" in given else [f"--save runs/{number}"]
    return " ".join(flags)


@pytest.mark.parametrize(
    ("page", "scripts"),
    [
        ("README.md", {"train_search.py", "train.py", "test.py", "visualize.py"}),
        ("docs/data.md", {"train_search.py", "train.py"}),
    ],
)
def test_the_commands_of_a_page_work_one_after_the_other(page: str, scripts: set, visitor: Path, run) -> None:
    """On small settings; measurements, and what needs CIFAR-10 or ImageNet, are left out."""
    done = set()
    for number, command in enumerate(STARTED):
        path, given = command.split()
        if command.page != page or path.startswith("benchmarks/") or {"cifar10", "imagenet"} & set(given):
            continue
        code, _, err = run(script(path), *given, on_small_settings(path, given, number))
        assert code == 0, f"{command}: {err}"
        done.add(path)
    assert done == scripts


def test_the_exported_network_is_used_as_its_page_says(visitor: Path, run) -> None:
    pytest.importorskip("torch", minversion="2.9")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    page = (ROOT / "docs" / "evaluating.md").read_text()
    (code,) = (body for language, body in FENCE.findall(page) if language == "python")
    Image.fromarray(np.diag(np.full(8, 250, dtype=np.uint8))).save(visitor / "scan1.png")
    export = next(command for command in STARTED if "--export" in command.words)
    status, _, err = run(script("test.py"), *export.split()[1])
    assert status == 0, err
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    _, named, _ = run(script("test.py"), "--model_path", export.words[3], "--predict scan1.png")
    assert named.startswith(f"scan1.png: {printed.getvalue().strip()} ")


# --- names


def test_every_flag_that_is_named_exists() -> None:
    known = set(TORCHRUN._option_string_actions) | {"--help"}
    for path in {command.split()[0] for command in STARTED}:
        known |= {f"--{no}{field.name}" for field in fields(script(path).Config) for no in ("", "no_")}
    for page in MANUAL:
        named = set(re.findall(r"(?<![\w-])--\w+", prose(page)))
        assert named <= known, name_of(page)


def test_the_table_of_a_searchs_flags_is_complete() -> None:
    page = (ROOT / "docs" / "searching.md").read_text()
    named = set(re.findall(r"`--(\w+)`", page))
    assert {field.name for field in fields(script("train_search.py").Config)} <= named


def test_every_file_that_is_named_exists() -> None:
    for page in MANUAL:
        for name in re.findall(r"`([\w/]+\.py)`", prose(page)):
            assert (ROOT / name).is_file(), f"{name_of(page)}: {name}"


def test_the_readme_names_every_file_and_folder_of_the_root() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no clone: what belongs to the project is not known")
    tracked = listed.stdout.splitlines()
    entries = {name for name in tracked if "/" not in name and name.endswith(".py")}
    entries |= {f"{name.split('/')[0]}/" for name in tracked if "/" in name and name[0] != "."}
    table = README.read_text().partition("\n## Files\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(.+?)`", " ".join(rows))) == sorted(entries)


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 200


# --- figures


def record(path: str) -> dict:
    return json.loads((RECORDS / path).read_text())


def rows_of(page: Path, *path: str) -> list[list[str]]:
    """The cells of the first table behind some words (one after the other), without its head and stars."""
    text = page.read_text()
    for words in path:
        assert words in text, words
        text = text.partition(words)[2]
    table = re.search(r"^\|.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert table is not None, path
    lines = table.group().replace("*", "").splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def mean_and_sd(spread: dict, scale: float = 1) -> str:
    return f"{scale * spread['mean']:.2f} ({scale * spread['sd']:.2f})"


SEARCHES = "2026-11-24-search-tables/"
NEWER = "2026-11-26-search-tables/"
STRATEGIES = ("ours", "unpaired", "slow_fast", "random", "evolution", "local", "gaussian_process")


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ("NAS-Bench-201, CIFAR-10", (f"{NEWER}nasbench201",)),
        ("The same, seeing only", (f"{SEARCHES}nasbench201_noisy", f"{NEWER}nasbench201_noisy")),
        ("The DARTS space, by", (f"{SEARCHES}darts_gp", f"{NEWER}darts", f"{NEWER}darts_unpaired")),
    ],
)
def test_searches_on_tables(words: str, files: tuple[str, ...]) -> None:
    """What is not in a later record is from an earlier one."""
    found: dict = {}
    for file in files:
        found |= record(f"{file}.json")["strategies"]
    text = RESULTS.read_text().partition("## On tables of trained networks")[2].partition(words)[2]
    budgets = [cell.strip() for cell in text[text.index("\n| ") :].splitlines()[1].strip("|").split("|")[1:]]
    rows = rows_of(RESULTS, "## On tables of trained networks", words)
    for name, (_, *printed) in zip(STRATEGIES, rows, strict=True):
        known = [found[name][budget] for budget in budgets if budget in found[name]]
        assert [cell for cell in printed if cell] == [mean_and_sd(one) for one in known], name


def test_what_pairs_bring_where_losses_drift() -> None:
    found = record(f"{NEWER}drift_nasbench201.json")["strategies"]
    printed = [row[1:] for row in rows_of(RESULTS, "### What pairs bring")]
    assert printed == [[mean_and_sd(one) for one in found[name].values()] for name in found]


def test_the_readmes_results() -> None:
    printed = [row[1:4] for row in rows_of(README, "## Results")]
    expected = []
    files = (
        [f"{NEWER}nasbench201"],
        [f"{NEWER}nasbench201_noisy"],
        [f"{NEWER}darts"],
    )
    for some in files:
        found = {name: one for file in some for name, one in record(f"{file}.json")["strategies"].items()}
        expected.append([mean_and_sd(found[name]["50"]) for name in ("ours", "slow_fast", "random")])
    for file in ("cifar10_jpeg", "fashion_mnist"):
        errors = record(f"2026-11-26-search-on-images/{file}.json")["strategies"]
        names = ("ours", "slow_fast", "random_same_estimate")
        expected.append([mean_and_sd(errors[name]["test_error"], 100) for name in names])
    images = record("2026-11-24-search-on-images/cifar10-jpeg-100.json")["strategies"]
    expected.append(
        [mean_and_sd(images[name]["test_error"], 100) for name in ("ours", "slow_fast", "random")]
    )
    digits = record("2026-11-24-search-digits/found_cell.json")["test_error"]
    cells = {name: {"mean": np.mean(errors), "sd": np.std(errors, ddof=1)} for name, errors in digits.items()}
    expected.append([mean_and_sd(cells["found"], 100), "", mean_and_sd(cells["random"], 100)])
    assert printed == expected


RIVALS = ("random_same_estimate", "halving", "local", "slow_fast", "random")


def test_searches_on_images() -> None:
    names = ("ours", *RIVALS, "largest", "prior_only", "chance")
    sets, readme = ("cifar10_jpeg", "fashion_mnist"), " ".join(README.read_text().split())
    found = [record(f"2026-11-26-search-on-images/{name}.json")["strategies"] for name in sets]
    for name, (_, *printed) in zip(names, rows_of(RESULTS, "## On real images"), strict=True):
        expected = []
        for each in found:
            expected.append(mean_and_sd(each[name]["test_error"], 100))
            minus = each[name].get("difference_to_ours")
            low, high = (100 * end for end in minus["interval"]) if minus else (0, 0)
            expected.append(f"{100 * minus['mean']:+.2f} ({low:+.2f} to {high:+.2f})" if minus else "")
            assert expected[-1] in readme or name == "chance"
            share, ends = each[name].get("share_of_gap"), each[name].get("share_of_gap_interval")
            expected.append(f"{share:.0%} ({ends[0]:.0%} to {ends[1]:.0%})" if ends else "")
            assert expected[-1] in readme or name != "ours"
        assert printed == expected


def test_what_is_held_against_the_searches_on_images() -> None:
    text = " ".join(RESULTS.read_text().split())
    cifar10, fashion = (
        record(f"2026-11-26-search-on-images/{name}.json") for name in ("cifar10_jpeg", "fashion_mnist")
    )
    assert f"The gap is {100 * cifar10['gap']:.2f} and {100 * fashion['gap']:.2f} points" in text
    sizes = [
        {
            name: np.mean([run["parameters"] for run in runs])
            for name, runs in found["searches"].items()
            if name != "chance"
        }
        for found in (cifar10, fashion)
    ]
    ours, largest = ([size[name] / 1000 for size in sizes] for name in ("ours", "largest"))
    others = [size[name] / 1000 for size in sizes for name in RIVALS]
    assert f"larger**: {ours[0]:.0f},000 and {ours[1]:.0f},000 parameters" in text
    assert f"those of the five others {min(others):.0f},000 to {max(others):.0f},000" in text
    assert f"(`largest`, {largest[0]:.0f},000 and {largest[1]:.0f},000)" in text
    for found, words in ((cifar10, "standard errors on CIFAR-10"), (fashion, "on Fashion-MNIST")):
        minus = found["strategies"]["largest"]["difference_to_ours"]
        ahead = minus["mean"] / (minus["sd"] / math.sqrt(minus["n"]))
        wins = sum(value > 0 for value in minus["values"])
        assert f"by {ahead:.1f} {words} ({wins} of 10" in text
    pairs = [Counter(), Counter()]
    for counter, found in zip(pairs, (cifar10, fashion), strict=True):
        for run in found["searches"]["ours"]:
            counter.update(run["decided_by"])
    words = " and ".join(f"{each['predictor']} of {each.total()}" for each in pairs)
    assert f"The predictor decided {words} pairs" in text
    later = slice(2, None)  # from seed 12 on
    for name in ("random_same_estimate", "halving"):
        errors = {
            who: [100 * run["test_error"] for run in cifar10["searches"][who]][later]
            for who in (name, "ours")
        }
        minus = np.array(errors[name]) - errors["ours"]
        low, high = scipy.stats.t.interval(0.95, len(minus) - 1, minus.mean(), scipy.stats.sem(minus))
        assert f"{minus.mean():+.2f} ({low:+.2f} to {high:+.2f})" in text


def test_what_size_brings_in_the_table() -> None:
    with (RECORDS / "2026-11-26-image-table" / "cifar10_jpeg.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [
        [float(row["accuracy"]), math.log(float(row["parameters"]))]
        for row in rows
        if row["kind"] == "random"
    ]
    accuracy, size = np.array(values).T
    text = " ".join(RESULTS.read_text().split())
    assert (
        f"random cells gain {scipy.stats.linregress(size, accuracy).slope:.1f} points for each e-fold" in text
    )
    chosen = [float(row["accuracy"]) for row in rows if row["kind"] == "chosen"][:16]
    assert f"({np.mean(chosen):.2f}% in the first round)" in text
    assert f"were [{np.mean(chosen) - accuracy.mean():.1f} points above random" in text


def test_found_cells_of_deeper_networks() -> None:
    errors = record("2026-11-26-search-larger/found_cell.json")["test_error"]
    printed = rows_of(RESULTS, "beside known cells and twelve random ones")
    for (name, values), (_, *row) in zip(errors.items(), printed, strict=True):
        spread = {"mean": np.mean(values), "sd": np.std(values, ddof=1)}
        expected = [mean_and_sd(spread, 100), str(len(values)), ""]
        if name not in ("found", "random"):
            minus = 100 * (np.array(values) - errors["found"])
            low, high = scipy.stats.t.interval(0.95, 3, minus.mean(), scipy.stats.sem(minus))
            expected[-1] = f"{minus.mean():+.2f} ({low:+.2f} to {high:+.2f})"
        assert row == expected
    assert max(errors["found"]) < min(errors["random"])


def test_the_speed_of_the_predictor() -> None:
    found = record("2026-11-26-predictor-speed/predictor_speed.json")["seconds"]
    speed, digits = ROOT / "docs" / "speed.md", {"fit": 2, "refit": 2, "more": 3, "search": 1}
    for (name, entry), (_, *printed) in zip(found.items(), rows_of(speed, "## The predictor"), strict=True):
        seconds = [f"{entry[which]['mean']:.{digits[name.split()[0]]}f}" for which in ("this", "other")]
        assert printed == [*seconds, f"{entry['ratio']:.1f}"], name


def test_fronts() -> None:
    found = [record(f"2026-11-26-fronts/{name}.json")["hypervolume"] for name in ("darts", "nasbench201")]
    names = ("ours", "nsga2", "random", "single")
    for name, (_, *printed) in zip(names, rows_of(RESULTS, "## The front"), strict=True):
        values = [one for each in found for one in each[name].values()]
        assert printed == [f"{one['mean']:.3f} ({one['sd']:.3f})" for one in values]


def test_what_ranks_cells() -> None:
    found = record("2026-11-26-image-table/estimates.json")["estimates"]
    kinds = ("training loss", "training loss summed", "validation loss", "validation error")
    for epoch, *printed in rows_of(RESULTS, "## What ranks cells on images")[:-1]:
        rows = [found[f"{kind}, on the way, {epoch}"] for kind in kinds]
        assert printed == [f"{r['tau']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in rows]


def test_what_ranks_cells_that_anneal_within_fewer_epochs() -> None:
    found = record("2026-11-26-image-table/estimates_annealed.json")["estimates"]
    kinds = ("training loss", "training loss summed", "validation loss", "validation error")
    for epoch, *printed in rows_of(RESULTS, "Where it falls within fewer"):
        rows = [found[f"{kind}, annealed, {epoch}"] for kind in kinds]
        assert printed == [f"{r['tau']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in rows]


def test_what_ranks_cells_on_fashion_mnist() -> None:
    found, text = (
        record("2026-11-26-image-table/estimates_fashion_mnist.json"),
        " ".join(RESULTS.read_text().split()),
    )
    gain, taus = found["gain"], found["estimates"]
    assert f"mean {gain['mean']:.2f}%, sd between cells {gain['sd_between_cells']:.2f}" in text
    assert f"the best of 25 is {gain['best_of']['25']:.1f} points above the mean" in text
    values = [taus[f"training loss, on the way, {epoch}"]["tau"] for epoch in (1, 4, 10)]
    assert "its tau is {:.2f}, {:.2f} and {:.2f}".format(*values) in text
    assert f"another training's test accuracy has {taus['another full training']['tau']:.2f}" in text


def test_what_fidelity_as_an_input_tells() -> None:
    files = ("estimates", "estimates_fashion_mnist")
    found = [record(f"2026-11-26-image-table/{file}.json")["estimates"] for file in files]
    for epoch, *printed in rows_of(RESULTS, "Fidelity as an input of the kernel"):
        ways = (
            "epoch as an input",
            "epoch as an input, ends of a quarter",
            "training loss, cells without an end",
        )
        names = [f"{way}, {epoch}" for way in ways]
        rows = [each[name] for each in found for name in names]
        assert printed == [f"{r['tau']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in rows]
    at_equal_cost = [each["epoch as an input, ends of a quarter, all cells, 2"] for each in found]
    words = [f"{r['tau']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in at_equal_cost]
    assert f"ends have {' and '.join(words)} over all cells" in " ".join(RESULTS.read_text().split())


def test_what_a_weight_set_tells() -> None:
    found = record("2026-11-26-set-estimates/estimates.json")["estimates"]
    ways = ("published", "random pairs", "short visits", "fast only", "mean", "constant rate", "two epochs")
    judged = [f"{how}{age}" for how in LOSSES for age in ("", ", age out")]
    for way, (_, *printed) in zip(ways, rows_of(RESULTS, "### What a weight set tells"), strict=True):
        rows = [found[f"set {way}: {name}"] for name in (*judged, "as it is")]
        assert printed == [f"{r['tau']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in rows]
        with_age, without = (found[f"set {way}: {LOSSES[1]}{age}"]["tau"] for age in ("", ", age out"))
        assert without > with_age


LOSSES = ("last rate validation loss", "rate training loss")
CHANGES = (  # in the order of the table
    *("ours", "ours_without_screen", "ours_without_levels", "ours_without_decide", "ours_without_rank"),
    *("ours_with_mixed_pairs", "ours_with_4_proposals", "ours_with_64_proposals", "ours_with_short_steps"),
    *("ours_with_confidence_0.9", "ours_with_half_audited", "ours_with_real_per_option"),
)


def test_what_each_part_brings() -> None:
    files = [f"{SEARCHES}ablation_{name}.json" for name in ("nasbench201", "nasbench201_noisy", "darts")]
    tables = [record(file)["strategies"] for file in files]
    rows = rows_of(RESULTS, "## What each part brings")
    for name, (_, *printed) in zip(CHANGES, rows, strict=True):
        found = [[f"{table[name][budget]['mean']:.2f}" for budget in ("50", "100")] for table in tables]
        assert printed == [" / ".join(means) for means in found], name


@pytest.mark.parametrize(("words", "file"), [("probabilities", "nasbench201"), ("ECE of these", "darts")])
def test_how_well_the_predictor_ranks(words: str, file: str) -> None:
    found = record(f"2026-11-24-predictor-tables/predictor_{file}.json")
    rows = iter(rows_of(RESULTS, "## How well the predictor ranks", words))
    for kind in ("labelled", "pairs", "differences"):
        if kind != "differences":
            assert [cell for cell in next(rows)[1:] if cell] == list(found[kind])
        for value in (lambda x: x["tau"]["mean"], lambda x: x["expected_calibration_error"]):
            assert [cell for cell in next(rows)[1:] if cell] == [
                f"{value(x):.3f}" for x in found[kind].values()
            ]


def test_the_checkpoints_errors() -> None:
    cards = {
        path.stem: json.loads(path.read_text())["result"] for path in (ROOT / "trained_model").glob("*.json")
    }
    rows = {row[0]: row for row in rows_of(RESULTS, "## The checkpoints in")}
    assert len(cards) == 3
    for name, result in cards.items():
        error = f"{100 * result['test_error']:.2f}%"
        low, high = (f"{100 * limit:.2f}" for limit in result["test_interval"])
        assert rows[f"`{name}.pt`"][3] == f"{error} ({low} to {high})"
        assert error in README.read_text()


def test_the_backbones_of_the_digits_detector() -> None:
    page, folder = ROOT / "docs" / "dense.md", "2026-11-26-dense-digits/"
    found, result = (
        record(f"{folder}dense_backbone.json")["backbones"],
        record(f"{folder}card.json")["result"],
    )
    rows = rows_of(page, "## On the digits", "closest")
    for (_, *printed), each in zip(rows, (found["cell"], found["mobilenet_v2"]), strict=True):
        costs = each["costs"]
        sizes = [
            f"{costs[f'{part}parameters'] / 1e6:.2f} M, {costs[f'{part}multiply_adds'] / 1e6:.1f} M"
            for part in ("backbone_", "")
        ]
        precisions = [mean_and_sd(each[name], 100) for name in ("ap50", "coco_ap")]
        assert printed == [*sizes, *precisions, str(each["ap50"]["n"])]
    text = " ".join(page.read_text().split())
    low, high = result["test_ap50_interval"]
    assert f"{100 * result['test_ap50']:.2f}% ({100 * low:.2f} to {100 * high:.2f})" in text
    cell, other = (100 * np.array(found[name]["ap50"]["values"]) for name in ("cell", "mobilenet_v2"))
    ahead = other - cell
    half = scipy.stats.t.ppf(0.975, len(ahead) - 1) * scipy.stats.sem(ahead)
    mean = ahead.mean()
    assert f"{mean:.2f} points on average (95%: {mean - half:.2f} to {mean + half:.2f})" in text
    assert sum(ahead > 0) == 4
    assert f"by {sorted(ahead)[1]:.1f} to {max(ahead):.1f} points" in text
    assert f"{-min(ahead):.1f} behind with the fifth, where it reaches {min(other):.2f}%" in text


def test_the_masks_of_the_digits() -> None:
    card = record("2026-11-26-dense-digits/masks/card.json")
    low, high = card["result"]["test_mean_iou_interval"]
    figure = f"{100 * card['result']['test_mean_iou']:.2f}% ({100 * low:.2f} to {100 * high:.2f})"
    text = " ".join((ROOT / "docs" / "dense.md").read_text().split())
    assert f"a mean IoU of {figure}" in text
    assert f"in {card['training_seconds'] / 60:.0f} minutes" in text
