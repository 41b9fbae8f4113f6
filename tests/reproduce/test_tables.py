"""Table files: the shipped ones say what the paper's hold; a user's mistakes are named with file, row and key."""

from pathlib import Path

import pytest

from svdctl.errors import UsageError
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.table_files import (
    Request,
    ResultTable,
    SpeedFigure,
    find_table,
    gather,
    list_tables,
    read_table,
    table_folder,
)

ROWS = {
    "table1": [f"lipconv{n}-{kind}" for n in (5, 20, 30) for kind in ("soc", "sott128", "sott256")],
    "table2": [f"{c}-{r}" for c in ("none", "clip", "divide") for r in ("full", "tt192", "tt256", "tt320")],
    "table3": [f"{c}-{r}" for c in ("none", "clip", "divide") for r in ("full", "tt192", "tt256", "tt320")],
    "table-vgg": [
        f"cifar{n}-{c}-{r}" for n in (10, 100) for c in ("none", "clip", "divide") for r in ("full", "tt192", "tt256")
    ],
}


def test_the_shipped_tables() -> None:
    assert list(list_tables()) == sorted([*ROWS, "all", "figure-speed"])
    assert all(len(line) > 10 for line in list_tables().values())
    assert all(path.read_text().startswith("# ") for path in table_folder().glob("*.toml"))
    everything = gather(["all"])
    assert list(everything) == ["table1", "table2", "table3", "table-vgg", "figure-speed"]
    assert isinstance(everything["figure-speed"][1], SpeedFigure)


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_columns_are_the_papers(name: str) -> None:
    table = read_table(find_table(name))
    assert isinstance(table, ResultTable)
    assert [row.name for row in table.rows] == ROWS[name]
    assert table.seeds == (3407,)
    if name == "table1":
        assert table.columns == ("compression", "accuracy", "certified-36")
    else:
        assert table.columns == ("compression", "accuracy", "cifar-c", "ece", "autoattack", "control-time")
        assert (table.evaluate.norm, table.evaluate.eps, table.evaluate.examples) == ("L2", 0.5, None)
        assert table.evaluate.attacks == ()
        assert table.evaluate.severities == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_every_row_is_a_configuration(name: str, scale: str) -> None:
    (plan,) = make_plan(Request(tables=(name,), scale=scale)).tables  # type: ignore[arg-type]
    for row in plan.rows:
        config = row.config
        hundred = name == "table3" or row.row.name.startswith("cifar100")
        data = "digits" if scale == "smoke" else "cifar100" if hundred else "cifar10"
        assert config.data.kind == data
        assert config.seed == 3407
        rank = next((int(part[len(kind) :]) for kind in ("tt", "sott") for part in row.row.name.split("-")
                     if part.startswith(kind)), None)  # fmt: skip
        if scale == "full" and rank is not None:
            assert config.layer.rank == rank
        if name != "table1":
            kind = row.row.name.split("-")[-2]
            assert config.control.kind == kind
            assert (config.layer.kind == "tt") == (rank is not None)


def test_settings_of_control_are_the_papers() -> None:
    tables = {plan.name: plan for plan in make_plan(Request(tables=("table2", "table3", "table-vgg"))).tables}

    def of(table: str, part: str) -> set[tuple[object, ...]]:
        found = set()
        for row in tables[table].rows:
            if part in row.row.name:
                config = row.config
                limit = config.batchnorm.max_gain if config.batchnorm else None
                found.add((config.control.max_sigma, config.control.linear_max, limit, config.control.every_steps))
        return found

    assert of("table2", "divide-") == {(7, 7, 10, 1)}
    assert of("table3", "divide-") == {(10, 3.9, 6.1, 1)}
    assert of("table-vgg", "-divide-") == {(1.5, 1.5, 8, 1)}
    assert of("table2", "clip-") == of("table3", "clip-") == {(2, None, None, 100)}
    assert of("table-vgg", "-clip-") == {(0.5, None, None, 100)}
    decay = {row.row.name: row.config.optimizer.weight_decay for row in tables["table3"].rows}
    assert {name: value for name, value in decay.items() if value != 1e-4} == {
        name: 5e-5 for name in decay if name.startswith("divide")
    }


GOOD = 'title = "T"\ncolumns = ["accuracy"]\n[[rows]]\nname = "a"\npreset = "wrn-cifar10"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "prest = 1\n", ["row 'a'", "prest: there is no such key", "did you mean preset?"]),
        (GOOD + "prest = 1\n", ["mine.toml: row 'a': prest: ", "did you mean preset? (known: name, label, group,"]),
        (GOOD + "bogs = 1\n", ["bogs: there is no such key (known: name, label, group, preset, set, smoke, notes)"]),
        ("bogus = 1\n" + GOOD, ["bogus: there is no such key; did you mean columns? (known: title, plugins, kind, "]),
        (GOOD + "[evaluate]\nradii = [1]\n", ["evaluate.radii: there is no such key (known: examples, attacks, eps,"]),
        (GOOD + "set = 'epochs=3'\n", ["row 'a': set: 'epochs=3' is not valid; write a list, in [ ]"]),
        (GOOD.replace('preset = "wrn-cifar10"\n', ""), ["row 'a': preset: ", "the key preset is missing; add it"]),
        (GOOD.replace('"T"', "3"), ["title: 3 is not valid; write a text, in quotation marks"]),
        ('kind = "collection"\ntitle = "c"\ntables = []\n', ["tables: [] is not valid; one at least is needed"]),
        ('title = "T"\ncolumns = ["ece"]\nrows = [3]\n', ["mine.toml: row 1: 3 is not valid here; write a section"]),
        (GOOD.replace('name = "a"\n', "") + "x = 1\n", ["row 1", "x: there is no such key", "name: a value"]),
        ("titel = 1\n" + GOOD, ["titel: there is no such key", "did you mean title?"]),
        (GOOD + "[smoke]\nsets = []\n", ["smoke.sets: there is no such key", "did you mean smoke.set?"]),
        (GOOD + "[smoke.evaluate]\nseverity = []\n", ["smoke.evaluate.severity: there is no such key", "severities?"]),
        (GOOD.replace("accuracy", "acuracy"), ["no column 'acuracy'", "did you mean accuracy?"]),
        ('kind = "tabel"\n' + GOOD, ["kind is one of", "'table', 'speed', 'collection'"]),
        (GOOD.replace('title = "T"\n', ""), ["title: a value is needed", "the key title is missing; add it"]),
        (GOOD.replace('"a"', '"a b"'), ["row 'a b'", "name: 'a b' is not valid"]),
        (GOOD + '[[rows]]\nname = "a"\npreset = "wrn-cifar10"\n', ["rows has a twice"]),
        ("seeds = [1, 1]\n" + GOOD, ["seeds has 1 twice"]),
        ("title = \n", ["the table file is no TOML"]),
        (GOOD.replace('"T"', '"a\\nb"'), ["title", "control characters"]),
        (GOOD + 'label = "a\\tb"\n', ["row 'a'", "label", "control characters"]),
        (GOOD + 'set = ["seed=3"]\n', ["row 'a'", "seed=3", "set by `seeds`"]),
        (GOOD.replace('columns = ["accuracy"]', "columns = 3"), ["columns: 3 is not valid; write a list, in [ ]"]),
        (GOOD.replace("[[rows]]", "[rows]"), ["rows: {'name': 'a'", "is not valid; write a list, in [ ]"]),
        (GOOD + '[evaluate]\nattacks = ["nope", "rand"]\n', ["evaluate.attacks", "no attack nope, rand", "apgd-ce"]),
        (GOOD + '[evaluate]\ncorruptions = ["fgo"]\n', ["evaluate.corruptions", "'fgo'", "did you mean fog?"]),
        ('kind = "speed"\ntitle = "x"\n[full.width]\nvalue = [1]\n', ["full.width.value: there", "width.values?"]),
    ],
)  # fmt: skip
def test_faults_name_file_row_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_table(path)
    said = str(caught.value)
    assert all(str(path) in fault for fault in caught.value.faults)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('preset = "wrn-cifar1"\n', ["no preset wrn-cifar1", "did you mean wrn-cifar10?"]),
        ('preset = "wrn-cifar10"\nset = ["layer.rnak=3"]\n', ["layer.rnak"]),
        ('preset = "wrn-cifar10"\nset = ["layer.kind=tt"]\n', ["rank"]),
        ('preset = "wrn-cifar10"\nset = ["nonsense"]\n', ["set = nonsense: write"]),
    ],
)
def test_faults_of_rows_that_only_their_configuration_shows(tmp_path: Path, row: str, words: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "T"\ncolumns = ["accuracy"]\n[[rows]]\nname = "a"\n{row}')
    with pytest.raises(UsageError) as caught:
        make_plan(Request(tables=(str(path),)))
    assert f"{path}: row 'a': " in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_table_in_the_docs_is_one(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "reproduce.md"
    path = tmp_path / "mine.toml"
    path.write_text(docs.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0])
    for scale in ("full", "smoke"):
        (plan,) = make_plan(Request(tables=(str(path),), scale=scale)).tables  # type: ignore[arg-type]
        assert [row.row.name for row in plan.rows] == ["divide-tt64"]


def test_one_fault_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + "prest = 1\n")
    with pytest.raises(UsageError) as caught:
        read_table(path)
    assert len(caught.value.faults) == 1


def test_a_collection_of_itself_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('kind = "collection"\ntitle = "x"\ntables = ["mine"]\n')
    with pytest.raises(UsageError, match="names no table but itself"):
        gather([str(path)])


def test_the_network_of_a_figure_is_judged_with_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = (table_folder() / "figure-speed.toml").read_text()
    path.write_text(text.replace('set = ["model.width=1"]', 'set = ["model.wdth=1"]'))
    with pytest.raises(UsageError, match=r"mine.toml: network: .*model.wdth"):
        make_plan(Request(tables=(str(path),)))


def test_static_columns_measure_no_figure() -> None:
    assert not make_plan(Request(tables=("all",), columns="static")).figures
    with pytest.raises(UsageError, match="figure-speed has none"):
        make_plan(Request(tables=("figure-speed",), columns="static"))


def test_names_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        gather(["tabel2", str(tmp_path / "none.toml"), "table3"])
    assert len(caught.value.faults) == 2
    assert "did you mean table2?" in str(caught.value)
    assert find_table("table_vgg") == find_table("Table-VGG")


def test_a_users_collection_and_preset_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD.replace("wrn-cifar10", "net.toml"))
    (tmp_path / "net.toml").write_text("epochs = 7\n")
    (tmp_path / "both.toml").write_text('kind = "collection"\ntitle = "x"\ntables = ["mine", "table2", "mine"]\n')
    plan = make_plan(Request(tables=(str(tmp_path / "both.toml"),)))
    assert [table.name for table in plan.tables] == ["mine", "table2"]
    assert plan.tables[0].rows[0].config.epochs == 7
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.toml").write_text(GOOD)
    with pytest.raises(UsageError, match="another table is called mine"):
        gather([str(tmp_path / "mine.toml"), str(other / "mine.toml")])
