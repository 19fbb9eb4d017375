"""Figures as files: whole or not at all, in the format of their suffix, with names as they are told elsewhere."""

import pytest

from codes.common.figure_files import FIGURE_STARTS, no_formula, pyplot, refuse_foreign_figure, save_figure


@pytest.mark.parametrize("suffix", [*FIGURE_STARTS, ".PNG"])
def test_a_figure_is_of_its_suffix_s_format_and_may_be_drawn_again(tmp_path, suffix):
    path = tmp_path / "new" / f"figure{suffix}"
    for _ in range(2):
        refuse_foreign_figure(path)
        save_figure(pyplot().figure(figsize=(1, 1)), path)
    assert path.read_bytes().startswith(FIGURE_STARTS[suffix.lower()])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_figure_that_is_not_finished_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    save_figure(pyplot().figure(figsize=(1, 1)), path)
    before = path.read_bytes()
    figure = pyplot().figure(figsize=(1, 1))

    def torn(file, **_):
        file.write(before[:20])
        raise OSError("disk is full")

    monkeypatch.setattr(figure, "savefig", torn)
    with pytest.raises(OSError, match="disk is full"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]


def test_a_name_is_no_formula_and_gives_a_terminal_no_orders():
    assert no_formula("a$x^2$") == r"a\$x^2\$"
    assert no_formula("\x1b[31mred\u2028") == r"\x1b[31mred\u2028"
