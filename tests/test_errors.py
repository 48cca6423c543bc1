from __future__ import annotations

from dist_trainer.config.deepspeed.mistakes import DeepSpeedFileError, Mistake
from dist_trainer.errors import RunError, UserError


def test_an_error_says_where_what_was_found_what_was_expected_and_what_to_do() -> None:
    error = UserError(
        "unknown key", where="a.yaml", key="model.layres", found="layres", expected="num_layers", hint="rename it"
    )
    assert str(error) == (
        "unknown key\n"
        "  where:    a.yaml: model.layres\n"
        "  found:    'layres'\n"
        "  expected: num_layers\n"
        "  do:       rename it"
    )


def test_parts_that_are_not_given_leave_no_line() -> None:
    assert str(UserError("it cannot be done")) == "it cannot be done"
    assert str(UserError("no", where="a.yaml")) == "no\n  where:    a.yaml"
    assert str(UserError("no", key="seed")) == "no\n  where:    seed"


def test_a_value_that_is_false_or_zero_or_empty_is_still_shown() -> None:
    for found, shown in ((0, "0"), (False, "False"), ("", "''"), ([], "[]")):
        assert str(UserError("no", found=found)) == f"no\n  found:    {shown}"


def test_the_users_mistakes_end_with_2_and_a_failed_run_with_1() -> None:
    assert UserError("no").exit_status == 2
    assert RunError("no").exit_status == 1
    assert isinstance(RunError("no"), UserError)


def test_a_message_is_not_as_long_as_what_was_found() -> None:
    text = str(UserError("bad", where="w" * 5000, found="x" * 100_000, hint="cut it"))
    assert len(text) < 2500 and "(100002 characters)" in text and text.endswith("cut it")


def test_nor_are_the_other_mistakes_of_a_file() -> None:
    mistakes = [Mistake("a", "unknown key"), Mistake("[" * 20_000, "unknown key")]
    assert len(str(DeepSpeedFileError(mistakes, "ds.json"))) < 2000
