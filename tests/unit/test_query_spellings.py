"""The three spellings of conditions: what they mean, what they refuse, and that they agree."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore.errors import InvalidQueryError
from blobstore.query import (
    Expression,
    F,
    Order,
    parse,
    parse_field,
    parse_mapping,
    parse_order,
    to_mapping,
)
from blobstore.query.tree import And, Compare, Not, Or
from blobstore.testing.queries import expressions, metadata

SAME = [
    (F("a") == 1, {"a": 1}, "a = 1"),
    (F("a") == 1, {"a": {"$eq": 1}}, "a == 1"),
    (F("a") != 1, {"a": {"$ne": 1}}, "a <> 1"),
    (F("a") != 1, {"a": {"$ne": 1}}, "a != 1"),
    (F("a.b") > -1.5, {"a.b": {"$gt": -1.5}}, "a.b > -1.5"),
    (F("a") >= "x", {"a": {"$gte": "x"}}, 'a>="x"'),
    (F("a") < 1e300, {"a": {"$lt": 1e300}}, "a < 1E+300"),
    (F("a") <= 0.5, {"a": {"$lte": 0.5}}, "a <= .5"),
    (F("a") == 5.0, {"a": 5.0}, "a = 5."),
    (F("a") == 10**30, {"a": 10**30}, f"a = +{10**30}"),
    (F("a") == True, {"a": True}, "a = TRUE"),  # noqa: E712
    (F("a") == None, {"a": None}, "a is null"),  # noqa: E711
    (F("a") != None, {"a": {"$ne": None}}, "a IS NOT NULL"),  # noqa: E711
    (F("a").isin([1, "x", None]), {"a": {"$in": [1, "x", None]}}, "a in (1, 'x', null)"),
    (F("a").isin([]), {"a": {"$in": []}}, "a in ()"),
    (F("a").notin((1, 2)), {"a": {"$nin": (1, 2)}}, "a Not In (1, 2)"),
    (F("a").between(1, 2), {"a": {"$between": [1, 2]}}, "a between 1 and 2"),
    (F("a").between(1, 2), {"a": {"$gte": 1, "$lte": 2}}, "a >= 1 and a <= 2"),
    (F("a").like("x_%"), {"a": {"$like": "x_%"}}, "a like 'x_%'"),
    (F("a").like(r"10\%"), {"a": {"$like": r"10\%"}}, r"a like '10\\%'"),
    (F("a").startswith("x"), {"a": {"$startswith": "x"}}, "a startswith 'x'"),
    (F("a").contains([1]), {"a": {"$contains": [1]}}, "a contains [1]"),
    (F("a").exists(), {"a": {"$exists": True}}, "a exists"),
    (~F("a").exists(), {"a": {"$exists": False}}, "not a exists"),
    (F("a") == {"b": [1, {}]}, {"a": {"b": [1, {}]}}, "a = {'b': [1, {}]}"),
    (F("a") == {}, {"a": {}}, "a = {}"),
    (F("a") == {"$x": 1}, {"a": {"$eq": {"$x": 1}}}, "a = {'$x': 1}"),
    (F("a") == [], {"a": []}, "a = []"),
    (F("a") == "it's \"\\\n\u2028é😀\0", {"a": "it's \"\\\n\u2028é😀\0"}, r"""a = 'it\'s "\\\n\u2028é\ud83d\ude00\u0000'"""),
    (F("a") == "\u00e9/", {"a": "é/"}, r"a = '\u00e9\/'"),
    (F(("x y", "a.b")) == 1, {"x y.`a.b`": 1}, "`x y`.`a.b` = 1"),
    (F("`in`") == 1, {"in": 1}, "`in` = 1"),
    (F("android") == 1, {"android": 1}, "android=1"),
    (F("@size") > 10, {"@size": {"$gt": 10}}, "@size > 10"),
    (~(F("a") == 1), {"$not": {"a": 1}}, "not a = 1"),
    (~(F("a") > 1), {"a": {"$not": {"$gt": 1}}}, "not (a > 1)"),
    (~~(F("a") > 1), {"$not": {"$not": {"a": {"$gt": 1}}}}, "not not a > 1"),
    ((F("a") == 1) & (F("b") == 2), {"a": 1, "b": 2}, "a = 1 and b = 2"),
    ((F("a") == 1) & (F("b") == 2) & (F("c") == 3), {"a": 1, "$and": [{"b": 2}, {"c": 3}]}, "a = 1 and (b = 2 and c = 3)"),
    ((F("a") == 1) | (F("b") == 2) | (F("c") == 3), {"$or": [{"$or": [{"a": 1}, {"b": 2}]}, {"c": 3}]}, "(a = 1 or b = 2) or c = 3"),
    ((F("a") == 1) | (F("b") == 2) & (F("c") == 3), {"$or": [{"a": 1}, {"b": 2, "c": 3}]}, "a = 1 or b = 2 and c = 3"),
    (((F("a") == 1) | (F("b") == 2)) & (F("c") == 3), {"$or": [{"a": 1}, {"b": 2}], "c": 3}, "(a = 1 or b = 2) AND c = 3"),
    (~(F("a") == 1) & (F("b") == 2), {"$not": {"a": 1}, "b": 2}, "not a = 1 and b = 2"),
    ((F("a") == 1), {"a": 1}, "\n(\t(a = 1) )\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("python", "mapping", "text"), SAME)
def test_three_spellings_of_one_condition(python, mapping, text):
    assert parse(python) is python
    assert parse(mapping) == python
    assert parse(text) == python
    assert parse(str(python)) == python
    assert parse(to_mapping(python)) == python


@given(st.data())
def test_what_is_printed_is_read_as_an_equal_expression(data):
    expression = data.draw(expressions(data.draw(st.lists(metadata(), min_size=1, max_size=3))))
    assert parse(str(expression)) == expression
    mapping = to_mapping(expression)
    assert parse(mapping) == expression
    assert parse(json.loads(json.dumps(mapping))) == expression


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(["a", " ", "=", "'", '"', "`", "(", ")", "in", "not", "and", "1", ".", "@", "[", "{", ":", ",", "between", "2026-01-01", "\\", "é", "\0"]), max_size=12).map("".join)))  # fmt: skip
def test_any_text_is_a_condition_or_an_invalid_query(text):
    try:
        expression = parse(text)
    except InvalidQueryError as exc:
        message = str(exc)
    else:
        assert parse(str(expression)) == expression
        return
    assert "\n    " in message
    assert message.endswith("^")


def test_printing():
    assert str((F("loss") < 0.1) & ~(F("author") == "bob") | F("tags").contains("x")) == (
        "loss < 0.1 and not author = 'bob' or tags contains 'x'"
    )
    assert str(~((F("a") == 1) & (F("a") == 1.0))) == "not (a = 1 and a = 1.0)"
    assert str(F("a") == "\x7f\u200b\t") == r"a = '\u007f\u200b\t'"
    assert str(F("@created_at") > datetime.date(2026, 1, 31)) == (
        "@created_at > '2026-01-31T00:00:00+00:00'"
    )
    assert to_mapping((F("a") > 1) & (F("a") < 2)) == {"$and": [{"a": {"$gt": 1}}, {"a": {"$lt": 2}}]}  # fmt: skip
    assert to_mapping(None) == {}
    assert repr(F("a.`b.c`")) == "F('a.`b.c`')"


def test_nothing_asked_for_is_everything():
    assert parse(None) is None
    assert parse({}) is None


def test_expressions_are_equal_if_they_are_written_the_same():
    assert (F("a") == 1) == (F("a") == 1)
    assert hash(F("a") == [1]) == hash(F("a") == [1])
    for other in (F("a") == True, F("a") == 1.0, F("b") == 1, F("a") != 1, ~(F("a") == 1)):  # noqa: E712
        assert not (F("a") == 1) == other  # noqa: SIM201 - the operator is what is tested
        assert len({F("a") == 1, other}) == 2
    assert (F("a") == 1) != 1


def test_joining_keeps_order_and_stays_flat():
    a, b, c, d = (F(name) == 1 for name in "abcd")
    assert (a & b) & (c & d) == And((a, b, c, d))
    assert (a | b) | (c | d) == Or((a, b, c, d))
    assert (a & b) | (c & d) == Or((And((a, b)), And((c, d))))
    assert a & a == And((a, a))
    assert ~~a == Not(Not(a))


# --- text: what is wrong, where, and what was expected

CONDITION = "a condition (a field and what must hold of it, not, or an opening parenthesis)"
VALUE = "a value (a number, 'text', true, false, null, a date, [...] or {...})"
OPERATOR = (
    "an operator (= != < <= > >=, in, not in, between, like, startswith, contains, exists, is null)"
)


@pytest.mark.parametrize(
    ("text", "character", "message"),
    [
        ("", 1, f"expected {CONDITION}, not the end"),
        ("   ", 4, f"expected {CONDITION}, not the end"),
        ("a", 2, f"expected {OPERATOR} or a dot, not the end"),
        ("a b", 3, f"expected {OPERATOR} or a dot, not 'b'"),
        ("a =", 4, f"expected {VALUE}, not the end"),
        ("accuracy => 0.9", 11, f"expected {VALUE}, not '>'"),
        ("a = b", 5, f"expected {VALUE}, not 'b'"),
        ("a = nan", 5, f"expected {VALUE}, not 'nan'"),
        ("1 = a", 1, f"expected {CONDITION}, not '1'"),
        ("a = 1 b = 2", 7, "expected the end, 'and' or 'or', not 'b'"),
        ("a = 1 and", 10, f"expected {CONDITION}, not the end"),
        ("a = 1 or or b = 2", 10, f"expected {CONDITION}, not 'or'; a field of that name is written `or`"),
        ("like = 1", 1, f"expected {CONDITION}, not 'like'; a field of that name is written `like`"),
        ("a.in = 1", 3, "expected the name of a field, not 'in'; a field of that name is written `in`"),
        ("a. = 1", 4, "expected the name of a field, not '='"),
        ("(a = 1", 7, "expected a closing parenthesis, not the end"),
        ("(a = 1 and b = 2", 17, "expected a closing parenthesis, not the end"),
        ("a = 1)", 6, "expected the end, not ')'"),
        ("a in 1", 6, "expected an opening parenthesis, not '1'"),
        ("a in (1 2)", 9, "expected a comma or a closing parenthesis, not '2'"),
        ("a = [1,", 8, f"expected {VALUE}, not the end"),
        ("a = {b: 1}", 6, "expected a closing brace or text in quotes, not 'b'"),
        ("a = {'b' 1}", 10, "expected a colon, not '1'"),
        ("a like 5", 8, "expected text in quotes, not '5'"),
        ("a not like 'x'", 7, "expected 'in', not 'like'"),
        ("a between 1 or 2", 13, "expected 'and', not 'or'"),
        ("a is 1", 6, "expected 'not' or 'null', not '1'"),
        ("a = 'x", 5, "the ' that opens here is never closed"),
        ('a = "x\\"', 5, 'the " that opens here is never closed'),
        ("`a = 1", 1, "the ` that opens here is never closed"),
        ("a ~ 1", 3, "'~' means nothing here; names with such characters stand in backquotes"),
        ("learning-rate = 1", 9, "'-' means nothing here; names with such characters stand in backquotes"),
        (r"a = 'x\q'", 7, r"there is no \q in text: a backslash is written as two (there are \\ \' \" \/ \b \f \n \r \t and \u followed by four hexadecimal digits)"),
        ("@siez = 1", 1, "there is no field @siez: an entry's own are"),
        ("b = 1 and a < true", 13, "a < True: only numbers and text come before or after others"),
        ("a between 1 and 'x'", 3, "a between 1 and 'x': both ends must be numbers, or both text"),
        ("a = 1e999", 3, "inf cannot be asked for"),
        ("a = '\\ud800'", 3, "lone surrogate"),
        ("a like 'x\\\\'", 3, "ends in a single backslash"),
        ("a = 2026-02-30", 5, "'2026-02-30' is no date"),
        ("a = " + "9" * 5000, 5, "the number is too long"),
        ("@size = 'x'", 7, "@size is a number, which 'x' is not"),
        ("@size in (1, 'x')", 7, "@size is a number, which 'x' is not"),
        ("@key = 1", 6, "@key is text, which 1 is not"),
        ("@size like 'x'", 7, "it is not text"),
        ("@created_at > 5", 13, "@created_at is a time, which 5 is not"),
        ("@created_at > 'soon'", 13, "@created_at is a time, and 'soon' is none"),
        ("@created_at is null", 13, "@created_at is a time, which None is not"),
    ],
)  # fmt: skip
def test_errors_show_the_place_and_what_was_expected(text, character, message):
    with pytest.raises(InvalidQueryError) as caught:
        parse(text)
    first, line, caret = str(caught.value).split("\n")
    assert first.startswith(f"the condition cannot be read at character {character}: ")
    assert message in first
    if len(text) < 90:
        assert line == f"    {text}"
        assert caret.index("^") - 4 == character - 1


def test_errors_in_long_text_show_a_part():
    text = "aaaa = 1 and " * 30 + "b ! 2" + " or ccccc = 1" * 30
    with pytest.raises(InvalidQueryError) as caught:
        parse(text)
    _, line, caret = str(caught.value).split("\n")
    assert len(line) < 120
    assert line.startswith("    ...")
    assert line.endswith("...")
    assert line[caret.index("^")] == "!"


def test_errors_in_several_lines_show_the_one():
    with pytest.raises(InvalidQueryError) as caught:
        parse("a = 1\nand\tb = \nor c = 2")
    assert str(caught.value).split("\n")[1:] == ["    or c = 2", "    ^"]
    with pytest.raises(InvalidQueryError) as caught:
        parse("a = 1\nand\tb ? 3\nor c = 2")
    assert str(caught.value).split("\n")[1:] == ["    and b ? 3", "          ^"]


def test_nesting_has_an_end():
    assert parse("not " * 99 + "a = 1") is not None
    assert parse("(" * 5000 + "a = 1" + ")" * 5000) == (F("a") == 1)
    assert len(parse(" and ".join(["a = 1"] * 5000)).items) == 5000
    deep = F("a") == 1
    for _ in range(5000):
        deep = ~deep
    mapping = {"a": 1}
    for _ in range(5000):
        mapping = {"$not": mapping}
    inner = {"$eq": 1}
    for _ in range(5000):
        inner = {"$not": inner}
    for too_deep in ("not " * 5000 + "a = 1", deep, mapping, {"a": inner}):
        with pytest.raises(InvalidQueryError, match="nested more than 100 levels deep"):
            parse(too_deep)
    with pytest.raises(InvalidQueryError, match="nested more than 100 levels deep"):
        parse("a = " + "[" * 3000 + "]" * 3000)


# --- dates and times


@pytest.mark.parametrize(
    ("moment", "microseconds"),
    [
        (datetime.datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=datetime.UTC), 1_000_005),
        (datetime.datetime(1970, 1, 1, 0, 0, 1), 1_000_000),
        (datetime.date(1970, 1, 2), 86_400_000_000),
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        (datetime.datetime(9999, 12, 31, 23, 59, 59, 999999), 253402300799999999),
    ],
)
def test_times_are_microseconds_in_utc(moment, microseconds):
    condition = F("@updated_at") <= moment
    assert condition.value == microseconds
    assert parse(str(condition)) == condition == parse(to_mapping(condition))
    assert F("@updated_at").isin([moment]).values == (microseconds,)


def test_pandas_and_numpy_times():
    import numpy as np
    import pandas as pd

    for moment in (pd.Timestamp("1970-01-02"), np.datetime64("1970-01-02T00:00:00")):
        assert (F("@created_at") == moment).value == 86_400_000_000


@pytest.mark.parametrize("wrong", [0, 1.5, True, None, "x", "", "12:00", [], datetime.time(12)])
def test_what_is_no_time(wrong):
    with pytest.raises(InvalidQueryError, match="@created_at is a time"):
        F("@created_at") > wrong  # noqa: B015


def test_times_outside_of_the_calendar():
    east = datetime.timezone(datetime.timedelta(hours=5))
    with pytest.raises(InvalidQueryError, match="beyond the years 1 to 9999"):
        F("@created_at") > datetime.datetime(1, 1, 1, tzinfo=east)  # noqa: B015


def test_unquoted_dates_are_what_storing_dates_makes():
    assert parse("d >= 2026-01-31") == (F("d") >= datetime.date(2026, 1, 31))
    aware = datetime.datetime(2026, 1, 31, 12, 30, tzinfo=datetime.UTC)
    assert parse("d >= 2026-01-31T12:30:00Z") == (F("d") >= aware)
    assert parse("d in (2026-01-31T12:30)").values == ("2026-01-31T12:30:00",)
    assert parse("@created_at between 2026-01-01 and 2026-01-02T00:00:00+01:00") == F(
        "@created_at"
    ).between("2026-01-01", "2026-01-01T23:00:00Z")


# --- dicts


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"$and": []}, r"\$and takes a list of at least one condition, not \[\]"),
        ({"$or": {"a": 1}}, r"\$or takes a list of at least one condition"),
        ({"$or": [{}]}, "a condition in a dict is a dict with at least one name, not {}"),
        ({"$or": [{"a": 1}, "b = 1"]}, "a dict with at least one name, not 'b = 1'"),
        ({"$not": {}}, "at least one name"),
        ({"$not": [{"a": 1}]}, "at least one name"),
        ({"$gt": 1}, r"\$gt does not stand where a field is named: write {field: {'\$gt': ...}}"),
        ({"$nor": []}, r"there are \$and, \$or, \$not; a field of that name .* '`\$nor`'"),
        ({"a": {"$gte": 1, "b": 2}}, r"operators and plain names side by side.*\$eq"),
        ({"a": {"$regex": "x"}}, r"no operator \$regex: there are \$eq, \$ne, \$lt"),
        ({"a": {"$not": 1}}, r"\$not takes a dict of operators, not 1; for a value, use \$ne"),
        ({"a": {"$not": {"b": 1}}}, r"\$not takes a dict of operators"),
        ({"a": {"$in": "abc"}}, "takes a list of values, not 'abc'"),
        ({"a": {"$in": 1}}, "takes a list of values, not 1"),
        ({"a": {"$in": {"b": 1}}}, "takes a list of values"),
        ({"a": {"$between": [1]}}, r"\$between takes a list of two values, not \[1\]"),
        ({"a": {"$between": "ab"}}, r"\$between takes a list of two values"),
        ({"a": {"$exists": 1}}, r"\$exists takes True or False, not 1"),
        ({"a": {"$like": 1}}, "a like takes text, not 1"),
        ({"a": {"$gt": None}}, "only numbers and text come before or after"),
        ({"a": float("nan")}, "nan cannot be asked for"),
        ({"a": {1}}, "the value is a set"),
        ({1: 2}, "name of a field must be a str, not 1"),
        ({"a..b": 1}, "divided by single dots"),
        ({"@nope": 1}, "there is no field @nope"),
    ],
)
def test_dicts_that_are_no_conditions(mapping, message):
    with pytest.raises(InvalidQueryError, match=message):
        parse(mapping)


def test_literal_names_and_values():
    strange = {"a.b": 1, "@size": {"$gt": 1}, "$or": [1], "`": None, "": (1, 2)}
    expression = parse_mapping(strange, literal=True)
    assert [(item.field.path, item.op, item.value) for item in expression.items] == [
        (("a.b",), "=", 1),
        (("@size",), "=", {"$gt": 1}),
        (("$or",), "=", [1]),
        (("`",), "=", None),
        (("",), "=", [1, 2]),
    ]
    assert parse_mapping({}, literal=True) is None
    for wrong in ([("a", 1)], {1: 2}, {"a": float("nan")}, {"a": {1}}):
        with pytest.raises(InvalidQueryError):
            parse_mapping(wrong, literal=True)


def test_a_mapping_is_not_changed():
    mapping = {"a": {"$in": [1, 2]}, "b": {"x": [1]}}
    expression = parse(mapping)
    expression.items[1].value["x"].append(2)
    assert mapping == {"a": {"$in": [1, 2]}, "b": {"x": [1]}}


# --- Python


def test_conditions_have_no_truth():
    with pytest.raises(InvalidQueryError, match=r"combine conditions with &, \| and ~"):
        bool(F("a") == 1)
    with pytest.raises(InvalidQueryError, match=r"write between\(low, high\)"):
        0 < F("a") < 1  # noqa: B015
    with pytest.raises(InvalidQueryError, match="has no truth of its own"):
        F("a") == 1 and F("b") == 2
    with pytest.raises(TypeError):
        (F("a") == 1) & True


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: F("a") > 1 & F("b"),
        lambda: F("a") | F("b"),
        lambda: ~F("a"),
        lambda: bool(F("a")),
        lambda: parse(F("a")),
    ],
)
def test_a_field_alone_is_no_condition(wrong):
    with pytest.raises(InvalidQueryError, match="alone is no condition"):
        wrong()


def test_fields_are_compared_with_values():
    for wrong in (F("b"), F("b") == 1):
        with pytest.raises(InvalidQueryError, match="is compared with a value, not with"):
            F("a") == wrong  # noqa: B015
    with pytest.raises(TypeError, match="unhashable"):
        hash(F("a"))


@pytest.mark.parametrize("wrong", [1, [], ["a = 1"], b"a = 1", object()])
def test_other_types_are_no_conditions(wrong):
    with pytest.raises(InvalidQueryError, match="made by F, or written as a dict or a str"):
        parse(wrong)


def test_values_from_an_iterator():
    assert F("a").isin(i for i in range(3)) == F("a").isin([0, 1, 2])
    assert isinstance(F("a").isin({1}), Expression)


# --- orders


def test_orders():
    loss = parse_field("loss")
    assert parse_order(None) == () == parse_order([])
    assert parse_order("loss") == (Order(loss),) == parse_order(F("loss")) == parse_order(["loss"])
    assert parse_order("-loss") == (Order(loss, descending=True),) == parse_order(F("loss").desc())
    assert parse_order(F("loss").asc()) == (Order(loss),)
    assert parse_order(("-a.b", F("@size").desc(), "`-c`")) == (
        Order(parse_field("a.b"), descending=True),
        Order(parse_field("@size"), descending=True),
        Order(parse_field("`-c`")),
    )


@pytest.mark.parametrize("wrong", [1, [1], [None], F("a") == 1, "", "-", "--a.", ["a", "@b"], b"a"])
def test_what_is_no_order(wrong):
    with pytest.raises(InvalidQueryError):
        parse_order(wrong)


def test_comparisons_are_plain_nodes():
    assert (F("a") == 1) == Compare(parse_field("a"), "=", 1)


def test_only_text_needs_the_parser_library():
    code = """
import sys
from blobstore import F
from blobstore.query import parse
parse({"a": {"$gt": 1}}) & (F("b") == 2)
assert "lark" not in sys.modules
parse("a = 1")
assert "lark" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
