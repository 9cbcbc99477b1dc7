"""Tables: the arithmetic, what is called best, and the three formats."""

import csv
import dataclasses
import io
import re
import shlex

import fake_runs
import pytest

from anpvs_tf.common import program
from anpvs_tf.evaluation import attack_choice
from anpvs_tf.programs import evaluate
from anpvs_tf.reporting import commands, formats, grouping, measurements, tables
from anpvs_tf.reporting.grouping import collect


def table1(path):
    runs, _ = collect([str(path)])
    return tables.comparison(grouping.groups(runs))


def cells(table, key):
    return {row.label: row.cells[key] for row in table.rows if key in row.cells}


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    for seed, robust in enumerate((0.5, 0.6, 0.7)):
        fake_runs.make(tmp_path / str(seed), "at", seed=seed, robust=robust)
    fake_runs.make(tmp_path / "alone", "anpvs", robust=0.65)
    found = cells(table1(tmp_path), "white_accuracy")
    assert found["at"].mean == pytest.approx(60.0)
    assert found["at"].deviation == pytest.approx(10.0)  # sqrt((100 + 0 + 100) / 2)
    assert found["anpvs"].deviation is None
    assert "60.00 ± 10.00" in formats.markdown(table1(tmp_path))


def test_best_is_the_highest_or_the_lowest_as_it_is_shown(tmp_path):
    fake_runs.make(tmp_path / "a", "at", clean=0.98001, robust=0.5, vulnerability=0.1)
    fake_runs.make(tmp_path / "b", "anp", clean=0.98002, robust=0.7, vulnerability=0.3)
    fake_runs.make(tmp_path / "c", "anpvs", clean=0.9, robust=0.6, vulnerability=0.01)
    table = table1(tmp_path)

    def best(key):
        return [label for label, cell in cells(table, key).items() if cell.best]

    assert best("clean_accuracy") == ["at", "anp"]  # Both are shown as 98.00.
    assert best("white_accuracy") == ["anp"]
    assert best("white_vulnerability") == ["anpvs"]
    assert best("memory") == ["anp", "anpvs"]
    text = formats.markdown(table)
    assert "**70.00**" in text and "**60.00**" not in text


def test_an_unreliable_figure_is_marked_and_never_the_best(tmp_path):
    high = fake_runs.make(tmp_path / "a", "at", robust=0.9, eval_attack_steps=20)
    fake_runs.make(tmp_path / "b", "anp", robust=0.6, eval_attack_steps=20)
    fake_runs.evaluate(high, accuracy=0.89, steps=20, step_size=0.02, reliable=False)
    fake_runs.evaluate(high, "autoattack", accuracy=0.3, reliable=True)
    table = table1(tmp_path)
    found = cells(table, "white_accuracy")
    assert found["at"].unreliable and found["at"].values == (90.0,)
    assert not any(cell.best for cell in found.values())
    assert not cells(table, "autoattack_accuracy")["at"].unreliable
    assert "90.00 †" in formats.markdown(table)
    assert r"90.00$^\dagger$" in formats.latex(table)
    assert any("†" in text for text in table.key)


def test_a_network_at_chance_is_never_the_best(tmp_path):
    fake_runs.make(tmp_path / "a", "at", clean=0.99, robust=0.6, vulnerability=0.03)
    fake_runs.make(
        tmp_path / "b", "anpvs", clean=0.1, robust=0.1, vulnerability=0.001, at_chance="it is"
    )
    fake_runs.make(tmp_path / "c", "anp", clean=0.98, robust=0.5, vulnerability=0.02)
    table = table1(tmp_path)
    best = [name for name, cell in cells(table, "white_vulnerability").items() if cell.best]
    assert best == ["anp"]
    assert any(note.startswith("At chance: anpvs.") for note in table.notes)


def test_that_another_attack_found_more_says_nothing_about_movement(tmp_path):
    run = fake_runs.make(tmp_path / "a", "at", eval_attack_steps=20)
    fake_runs.evaluate(run, accuracy=0.5, steps=20, step_size=0.02, reliable=True)
    held = run.results()
    run.write_results([held[0], held[1] | {"reliable": False}])
    table = table1(tmp_path)
    assert cells(table, "white_accuracy")["at"].unreliable
    assert not cells(table, "white_vulnerability")["at"].unreliable


def test_figures_of_fewer_images_are_named_and_not_compared(tmp_path):
    for method, examples in (("at", 100), ("anpvs", 359)):
        run = fake_runs.make(tmp_path / method, method)
        fake_runs.evaluate(run, "autoattack", accuracy=0.4, examples=examples)
    table = table1(tmp_path)
    assert not any(cell.best for cell in cells(table, "autoattack_accuracy").values())
    assert "AutoAttack: the first 100 (at), 359 (anpvs) images." in table.notes


def test_rows_that_were_attacked_differently_have_no_best(tmp_path):
    fake_runs.make(tmp_path / "a", "at", robust=0.9, epsilon=0.05)
    fake_runs.make(tmp_path / "b", "anpvs", robust=0.6)
    table = table1(tmp_path)
    assert not any(cell.best for row in table.rows for cell in row.cells.values())
    (note,) = (text for text in table.notes if "not evaluated alike" in text)
    assert "ε = 0.05" in note and "ε = 0.13" in note


def test_cells_of_fewer_seeds_say_so(tmp_path):
    for seed in (0, 1):
        run = fake_runs.make(tmp_path / str(seed), "at", seed=seed)
    fake_runs.evaluate(run, "transfer", accuracy=0.8, sources=["other"])
    table = table1(tmp_path)
    assert cells(table, "black_accuracy")["at"].seeds == (1,)
    assert cells(table, "black_vulnerability")["at"].mean == pytest.approx(0.015)
    assert "80.00 (n = 1)" in formats.markdown(table)


def test_a_stochastic_network_without_a_robust_accuracy_has_none(tmp_path):
    run = fake_runs.make(tmp_path / "a", "at")
    (record,) = run.results()
    run.write_results([record | {"robust_accuracy": None}])
    table = table1(tmp_path)
    assert "white_accuracy" not in {column.key for column in table.columns}


def test_columns_of_pruning_need_a_network_that_is_pruned(tmp_path):
    pruning = {"memory", "flops_reduction", "sparsity"}
    fake_runs.make(tmp_path / "at", "at", robust=0.5)
    fake_runs.make(tmp_path / "standard", "standard", robust=0.1)
    found = {column.key for column in table1(tmp_path).columns}
    assert not found & pruning and "white_accuracy" in found
    fake_runs.make(tmp_path / "anpvs", "anpvs", robust=0.4)
    assert {column.key for column in table1(tmp_path).columns} == found | pruning


def test_published_figures_stand_once_beside_each_method(tmp_path):
    for beta in (1.0, 2.0):
        fake_runs.make(tmp_path / f"{beta}", "anpvs", dataset="mnist", beta=beta)
    table = table1(tmp_path)
    text = formats.markdown(table)
    assert text.count("| anpvs, published | n = 5 | 99.05 | 91.31 |") == 1
    rows = list(csv.DictReader(io.StringIO(formats.comma_separated(table))))
    assert [row["source"] for row in rows] == ["measured", "measured", "published"]
    assert rows[2]["white_accuracy"] == "91.31" and rows[2]["white_accuracy_n"] == "5"
    # Not measured, but published: the column is there.
    assert rows[0]["black_accuracy"] == "" and rows[2]["black_accuracy"] == "95.43"


def test_tables_2_take_the_attack_that_most_runs_have(tmp_path):
    for seed in (0, 1):
        run = fake_runs.make(tmp_path / str(seed), "at", seed=seed, eval_attack_steps=20)
        for epsilon, accuracy in ((0.05, 0.8), (0.2, 0.2)):
            fake_runs.evaluate(
                run, accuracy=accuracy - 0.1 * seed, epsilon=epsilon, steps=40, step_size=0.01
            )
        fake_runs.evaluate(run, accuracy=0.4, steps=100, step_size=0.02)
    fake_runs.evaluate(run, accuracy=0.1, epsilon=0.2, steps=999, step_size=0.01)
    runs, _ = collect([str(tmp_path)])
    groups = grouping.groups(runs)
    radii, steps = tables.other_radii(groups), tables.more_steps(groups)
    assert [column.head for column in radii.columns] == ["ε = 0.05", "ε = 0.13", "ε = 0.2"]
    (row,) = radii.rows
    # At 0.13, of two that are as common, that of more steps.
    assert [row.cells[c.key].mean for c in radii.columns] == pytest.approx([75.0, 40.0, 15.0])
    assert [column.head for column in steps.columns] == ["20 steps", "100 steps"]
    (row,) = steps.rows
    assert [row.cells[c.key].mean for c in steps.columns] == pytest.approx([60.0, 40.0])
    assert "ε = 0.13" in steps.notes[0]


def test_table_3_needs_two_of_its_methods(tmp_path):
    fake_runs.make(tmp_path / "a", "at")
    fake_runs.make(tmp_path / "b", "standard")
    runs, _ = collect([str(tmp_path)])
    assert tables.ablation(grouping.groups(runs)) is None
    fake_runs.make(tmp_path / "c", "at_vs")
    runs, _ = collect([str(tmp_path)])
    assert [row.label for row in tables.ablation(grouping.groups(runs)).rows] == [
        "at",
        "at_vs",
    ]


def test_the_formats_have_every_column(tmp_path):
    fake_runs.make(tmp_path / "a", "at_vs", robust=0.5)
    fake_runs.make(tmp_path / "b", "anpvs", robust=0.61234, beta=2.0)
    fake_runs.make(tmp_path / "c", "anpvs", robust=0.6, beta=3.0)
    table = table1(tmp_path)
    width = 2 + len(table.columns)
    lines = [line for line in formats.markdown(table).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {width + 1} and len(lines) == 5
    rows = list(csv.DictReader(io.StringIO(formats.comma_separated(table))))
    assert [row["method"] for row in rows] == ["at_vs", "anpvs (beta=2)", "anpvs (beta=3)"]
    assert float(rows[1]["white_accuracy"]) == pytest.approx(61.234)
    text = formats.latex(table)
    body = re.sub(r"\\begin{tabular}\[[tb]\].*?\\end{tabular}", "cell", text)  # Cells of lines.
    body = body.split(r"\begin{tabular}")[1].split(r"\end{tabular}")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {width - 1} and len(rows) == 4
    assert r"at\_vs" in text and r"clean, \%" in text and r"\textbf{61.23}" in text
    assert text.count("{") == text.count("}")


def test_latex_escapes_what_it_would_misread():
    assert formats.latex_text(r"50% of a_b & {c} ~ \d") == (
        r"50\% of a\_b \& \{c\} \textasciitilde{} \textbackslash{}d"
    )


# ---- The commands beside the figures ----


@pytest.fixture(scope="module")
def resolve():
    """What bin/evaluate.py understands of a command line."""

    def resolve(line, settings):
        python, script, *arguments = shlex.split(line)
        assert (python, script) == ("python", "bin/evaluate.py")
        flags = program.Flags()
        evaluate.define(flags)
        flags.parse([script, *arguments])
        values = flags.values
        chosen = attack_choice.chosen_attacks(
            evaluate.choice_of(values), dataclasses.asdict(settings), 10, latent=True
        )
        found = [(attack_choice.description(*one), one[1].epsilon) for one in chosen]
        return [
            (dict(what, sources=values.source_run), e) if "sources" in what else (what, e)
            for what, e in found
        ], values

    return resolve


def test_the_command_of_an_evaluation_makes_it_again(tmp_path, resolve):
    run = fake_runs.make(tmp_path / "a run", "at", eval_attack_steps=20)
    gradient = {"restarts": 1, "draws": 1}
    wanted = [
        ({"name": "pgd", "steps": 20, "step_size": 0.02, **gradient}, 0.13),
        ({"name": "pgd", "steps": 7, "step_size": 0.014325678, **gradient}, 0.04),
        ({"name": "pgd", "steps": 40, "step_size": 2.5 * 0.06 / 40, **gradient}, 0.06),
        ({"name": "pgd-latent", "steps": 40, "step_size": 0.01, **gradient, "gamma": 3.0}, 0.13),
        (
            {"name": "autoattack", "steps": 100, "restarts": 2, "targets": 3, "queries": 77,
             "draws": 1},
            0.2,
        ),
        ({"name": "transfer", "steps": 40, "step_size": 0.01, **gradient, "sources": ["x", "y"]},
         0.1),
    ]  # fmt: skip
    for attack, epsilon in wanted:
        fake_runs.evaluate(run, epsilon=epsilon, **{"draws": 1, **attack})
    both = [wanted[0][0], {**wanted[4][0], "restarts": 1, "targets": 9, "queries": 5000}]
    held = run.results()
    held += [held[1] | {"attack": {"name": "worst-case", "of": both}, "attack_seed": 5}]
    held += [held[1] | {"examples": 50}]
    run.write_results(held)
    ((loaded,), _) = collect([str(run.path)])
    assert len(loaded.evaluations) == 8
    for record in loaded.evaluations:
        attacks, values = resolve(commands.evaluation(loaded, record), loaded.settings)
        attack = record["attack"]
        assert [one[0] for one in attacks] == attack.get("of", [attack])
        assert {one[1] for one in attacks} == {record["threat_model"]["epsilon"]}
        assert values.run_dir == str(run.path) and values.seed == record["attack_seed"]
        assert values.examples == (50 if record["examples"] == 50 else None)


def test_the_command_of_a_part_of_the_test_set_says_so(tmp_path, resolve):
    run = fake_runs.make(tmp_path / "run", "at", eval_examples=100, examples=100)
    fake_runs.evaluate(run)
    ((loaded,), _) = collect([str(run.path)])
    line = commands.evaluation(loaded, loaded.evaluations[0])
    assert resolve(line, loaded.settings)[1].examples == 100


def test_the_command_of_training_is_the_one_that_was_given(tmp_path):
    given = ["--method=at", "--run_dir=runs/with space"]
    ((run,), _) = collect([str(fake_runs.make(tmp_path / "r", "at", command=given).path)])
    assert shlex.split(commands.training(run)) == ["python", "bin/train.py", *given]
    assert commands.shell(["/somewhere/bin/report.py", "a"]) == "python bin/report.py a"
    assert measurements.white_box(run).command == commands.training(run)
