"""`reslib verify` on the README: its numbers, rows and verdicts are those of the records."""

# ruff: noqa: F811 (pytest takes the imported fixtures by the names of arguments)

import pytest
from verified import LENGTH, fast, found, only, results, sound, tables  # noqa: F401

from reslib import verify


@pytest.mark.parametrize(
    ("old", "new", "number"),
    [
        ("22.50 ±", "12.50 ±", "12.50"),
        ("269,722", "269,723", "269,723"),
        (f"· {LENGTH} iterations", f"· {LENGTH}7 iterations", f"{LENGTH}7"),
    ],
)
def test_a_number_in_the_readme_that_no_record_gives(results, tables, old, new, number):
    readme = results.parent / "README.md"
    assert old in readme.read_text()
    readme.write_text(readme.read_text().replace(old, new, 1))
    assert f"README.md: {number} in" in only(found(results))


def test_a_number_of_another_network_does_not_count(results, tables):
    readme = results.parent / "README.md"
    rows = {line.split("|")[1].strip(): line for line in readme.read_text().splitlines() if line.startswith("| R")}
    own, other = (rows[name].split("|")[3].split()[0] for name in ("ResNet-20", "ResNet-56"))
    assert own != other
    readme.write_text(readme.read_text().replace(rows["ResNet-20"], rows["ResNet-20"].replace(own, other)))
    assert "in the row of ResNet-20" in found(results).problems[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:1] + rows[2:],
        lambda rows: [rows[0], rows[2], rows[1], *rows[3:]],
        lambda rows: rows + rows[:1],
    ],
)
def test_a_readme_with_rows_left_out_or_moved(results, tables, change):
    readme = results.parent / "README.md"
    lines = readme.read_text().splitlines()
    nets = [i for i, line in enumerate(lines) if line.startswith(("| plain-", "| ResNet-"))]
    lines[nets[0] : nets[-1] + 1] = change([lines[i] for i in nets])
    readme.write_text("\n".join(lines))
    assert "the results are not those of the records" in only(found(results))


def test_a_readme_that_turns_a_verdict_round(results, tables):
    readme = results.parent / "README.md"
    assert "Claims that hold at" in readme.read_text()
    readme.write_text(readme.read_text().replace("Claims that hold at", "Claims that do not hold at"))
    assert "the results are not those of the records" in only(found(results))


def test_a_readme_with_a_second_table_of_results(results):
    readme = results.parent / "README.md"
    block = "<!-- results:start -->\n| resnet20 | 1.00 |\n<!-- results:end -->\n"
    readme.write_text(readme.read_text() + block)
    assert "<!-- results:start --> 2 and <!-- results:end --> 2 times" in only(found(results))
    readme.write_text("<!-- results:end -->")
    assert "<!-- results:start --> 0 and <!-- results:end --> 1 times" in only(found(results))


def test_a_readme_without_markers_and_an_old_index(results, fast):
    (results.parent / "README.md").write_text("no table")
    index = results / "README.md"
    index.write_text(index.read_text().replace("runs: 8", "runs: 9"))
    findings = found(results)
    assert "README.md has no <!-- results:start -->" in "\n".join(findings.warnings)
    assert "is old on quick" in only(findings)


def test_numbers_of_a_text():
    text = "| **8.75** | 0.27M, 269,722 | 7.54 (7.72 \u00b1 0.16) | \u22120.5 to +1.2% | CIFAR-10, 3c2d | 4, 6 |"
    assert verify.numbers(text) == ["8.75", "0.27M", "269,722", "7.54", "7.72", "0.16", "-0.5", "1.2", "4", "6"]
