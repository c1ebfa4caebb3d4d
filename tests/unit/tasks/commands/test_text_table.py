"""Tables that fit the terminal, with every text still there."""

from tasks.commands.text_table import table

HEAD = ("trial", "auc", "state", "train.embedding_learning_rate", "model.bottom", "features.user_events.lookback_days")
ROWS = [
    ("2", "0.7812", "complete", "0.003", "[256, 128, 64, 32]", "14"),
    ("0 (serves)", "0.7668", "complete", "0.001", "[64]", "7"),
]


def test_a_table_that_fits_is_drawn_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    head, first, second = table(HEAD, ROWS, len(HEAD))
    assert head.split() == " ".join(HEAD).split()
    assert [line.index("[") for line in (first, second)] == [head.index("model.bottom")] * 2
    assert table(("step", "MB"), [("train", "1.0"), ("join", "23.4")]) == ["step     MB", "train   1.0", "join   23.4"]


def test_a_wide_table_says_equal_cells_once_and_numbers_its_long_headings(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = table(HEAD, ROWS, len(HEAD))
    assert max(map(len, lines)) <= 80
    assert lines == [
        "trial       auc     1      model.bottom        2",
        "2           0.7812  0.003  [256, 128, 64, 32]  14",
        "0 (serves)  0.7668  0.001  [64]                7",
        "in all rows: state = complete",
        "1: train.embedding_learning_rate",
        "2: features.user_events.lookback_days",
    ]


def test_columns_that_do_not_fit_form_a_second_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    head = ("like", "AUC", "GAUC", "calibration", "AUC difference", "interval")
    rows = [
        ("committed", "0.7770", "0.7135", "0.9665", "", ""),
        ("wide", "0.7733", "0.7045", "0.9812", "-0.0037", "[…]"),
    ]
    assert table(head, rows) == [
        "like          AUC    GAUC  calibration",
        "committed  0.7770  0.7135       0.9665",
        "wide       0.7733  0.7045       0.9812",
        "",
        "like       AUC difference  interval",
        "committed",
        "wide              -0.0037       […]",
    ]


def test_on_a_narrow_terminal_long_cells_go_on_in_the_next_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    lines = table(HEAD, ROWS, len(HEAD))
    assert max(map(len, lines[:-3])) <= 20  # the legend has long names
    shown = " ".join(lines)
    assert all(part in shown for part in ("[256,", "128,", "64,", "32]", "0.7812", "(serves)", HEAD[3], HEAD[5]))


def test_a_table_of_one_row_keeps_its_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert "complete" in table(HEAD, ROWS[:1])[1]
