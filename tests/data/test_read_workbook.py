from __future__ import annotations

import datetime
import io
import re
import zipfile

import defusedxml.ElementTree
import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunerun.data.read import read_rows
from tunerun.data.rows import BadRow, Row, column_key
from tunerun.errors import UserError


def book(rows, title="Sheet"):
    made = openpyxl.Workbook()
    made.active.title = title
    for row in rows:
        made.active.append(row)
    return made


def saved(folder, made, name="a.xlsx"):
    made.save(folder / name)
    return folder / name


def values(path, sheet=None):
    rows = list(read_rows(path, "", sheet))
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.value for row in rows]


def rewritten(path, part, change):
    """Changes the XML of one part, as another program would have written it."""
    parts = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            parts[name] = archive.read(name)
    before = parts[part]
    parts[part] = change(before)
    assert parts[part] != before
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


SHEET = "xl/worksheets/sheet1.xml"
# What XML can hold; it turns a carriage return into a line end.
cells = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")) | st.sampled_from(
    ["007", "NA", "1", "true", "null", "", " x ", "\ttab\n", '"', "你好", "\U0001f600", "1e5", "2024-01-31", "#REF!x"]
)
clean = cells.filter(lambda text: not text.startswith("=") and re.search("_x[0-9A-Fa-f]{4}_", text) is None)


@settings(max_examples=60)
@given(st.lists(st.tuples(clean, clean, clean).filter(any), min_size=1, max_size=6))
def test_a_sheet_says_what_was_written(tmp_path_factory, written):
    made = openpyxl.Workbook(write_only=True)
    sheet = made.create_sheet("s")
    sheet.append(("id", "question", "answer"))
    for row in written:
        line = [openpyxl.cell.WriteOnlyCell(sheet, value=text) for text in row]
        for cell in line:
            cell.data_type = "s"
        sheet.append(line)
    path = saved(tmp_path_factory.getbasetemp(), made)
    assert values(path) == [dict(zip(("id", "question", "answer"), row, strict=True)) for row in written]


def test_values_are_the_texts_that_excel_shows(tmp_path):
    day = datetime.datetime(2024, 1, 31)  # noqa: DTZ001 (a sheet knows no time zone)
    made = book([["v"], ["007"], [7], [7.5], [4.0999999999999996], [0.1 + 0.2], [1e21], [True], [day.date()], [-3]])
    for value in (day.replace(hour=10), datetime.time(3, 4), datetime.timedelta(hours=30), datetime.date(1900, 2, 1)):
        made.active.append([value])
    assert [row["v"] for row in values(saved(tmp_path, made))] == [
        "007", "7", "7.5", "4.1", "0.3", "1E+21", "TRUE", "2024-01-31", "-3",
        "2024-01-31T10:00:00", "03:04:00", "30:00:00", "1900-02-01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "number", "text"),
    [
        ("000", 7, "007"), ("00000", 501, "00501"), ("0", 7, "7"), ("0.00", 7.5, "7.5"), ("0%", 0.5, "0.5"),
        ("yyyy/m/d", 45322, "2024-01-31"), ('yyyy"年"m"月"d"日"', 45322, "2024-01-31"), ("[Red]0", 7, "7"),
        ('0" days"', 7, "7"), ("h:mm AM/PM", 0.5, "12:00:00"), ("[h]:mm", 1.5, "36:00:00"),
        ("mmm-yy", 45322, "2024-01-31"),
        ("m/d/yyyy h:mm", 45322.5, "2024-01-31T12:00:00"), ("yyyy-mm-dd", 59, "1900-02-28"),
        ("General", 7, "7"), ('"$"#,##0', 1234, "1234"),
    ],
)  # fmt: skip
def test_a_number_format_decides_between_days_and_numbers(tmp_path, code, number, text):
    made = book([["v"], [number]])
    made.active["A2"].number_format = code
    assert values(saved(tmp_path, made)) == [{"v": text}]


def test_days_are_known_in_formats_that_only_east_asian_excel_has(tmp_path):
    path = saved(tmp_path, book([["v"], [45322]]))
    # Format 31 is built in, as days with Chinese signs.
    rewritten(path, "xl/styles.xml", lambda xml: xml.replace(b'numFmtId="0" fontId="0"', b'numFmtId="31" fontId="0"'))
    assert values(path) == [{"v": "2024-01-31"}]


def test_a_column_beyond_the_declared_extent_is_read(tmp_path):
    path = saved(tmp_path, book([["q", "a"], ["x", "y"], ["z", "w"]]))
    rewritten(path, SHEET, lambda xml: re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:A2"', xml))
    assert values(path) == [{"q": "x", "a": "y"}, {"q": "z", "a": "w"}]
    rewritten(path, SHEET, lambda xml: re.sub(rb"<dimension[^>]*>", b"", xml))
    assert values(path) == [{"q": "x", "a": "y"}, {"q": "z", "a": "w"}]


def test_days_may_be_counted_from_1904(tmp_path):
    made = book([["v"], [1]])
    made.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904
    made.active["A2"].number_format = "yyyy-mm-dd"
    assert values(saved(tmp_path, made)) == [{"v": "1904-01-02"}]


def test_rows_have_the_numbers_of_the_sheet_and_blank_ones_are_skipped(tmp_path):
    made = book([])
    for place, value in (("A2", "q"), ("B2", "a"), ("A5", "x"), ("B9", "y")):
        made.active[place] = value
    made.active["D40"].number_format = "000"
    rows = list(read_rows(saved(tmp_path, made)))
    assert [(row.line, row.value) for row in rows] == [(5, {"q": "x", "a": ""}), (9, {"q": "", "a": "y"})]
    assert rows[0].file == f"{tmp_path / 'a.xlsx'}[Sheet]"


def test_columns_are_known_by_name_and_by_letter(tmp_path):
    row = next(read_rows(saved(tmp_path, book([["q", None, "a", "B"], ["1", "two", "3", "4"]], "S"))))
    assert isinstance(row, BadRow)
    assert "column B has no name" in row.detail
    row = next(read_rows(saved(tmp_path, book([["q", None, "a"], ["1", "two", "3"]]))))
    assert row.value == {"q": "1", "B": "two", "a": "3"}
    assert [column_key(row, column) for column in ("q", "A", "b", "C", "D")] == ["q", "q", "B", "a", None]


def test_the_sheet_with_rows_is_taken_or_has_to_be_named(tmp_path):
    made = book([["q"], ["one"]], "First")
    made.create_sheet("Empty")
    hidden = made.create_sheet("Hidden")
    hidden.append(["q"])
    hidden.append(["secret"])
    hidden.sheet_state = "hidden"
    assert values(saved(tmp_path, made)) == [{"q": "one"}]
    assert values(tmp_path / "a.xlsx", "Hidden") == [{"q": "secret"}]
    made.create_sheet("Second").append(["q"])
    with pytest.raises(
        UserError, match=r"several sheets have rows: First, Second.*data\.sheet=Second, in data convert --sheet Second"
    ):
        values(saved(tmp_path, made))
    with pytest.raises(UserError, match=r"no sheet 'Third'\. It has First, Empty, Hidden, Second\."):
        values(tmp_path / "a.xlsx", "Third")


def test_formulas_give_what_excel_computed(tmp_path):
    path = saved(tmp_path, book([["q", "a"], ["x", "=1+1"], ["y", '="a"&"b"']]))
    (bad, other) = read_rows(path)
    assert isinstance(bad, BadRow)
    assert isinstance(other, BadRow)
    assert (bad.line, bad.reason) == (2, "formula-without-value")
    assert "cell B2 holds a formula that was never computed" in bad.detail
    computed = b'<c r="B2"><f>1+1</f><v>2</v></c>'
    rewritten(path, SHEET, lambda xml: re.sub(rb'<c r="B2"[^>]*>.*?</c>', computed, xml))
    text = b'<c r="B3" t="str"><f>x</f><v>ab</v></c>'
    rewritten(path, SHEET, lambda xml: re.sub(rb'<c r="B3"[^>]*>.*?</c>', text, xml))
    assert values(path) == [{"q": "x", "a": "2"}, {"q": "y", "a": "ab"}]


def test_errors_and_merged_cells_make_bad_rows(tmp_path):
    made = book([["q", "a"], ["x", "#REF!"], ["y", "1"], [None, "2"], ["z", None], ["w", "3"]])
    made.active["B2"].data_type = "e"
    made.active.merge_cells("A3:A4")
    made.active.merge_cells("A5:B5")
    made.active.merge_cells("D6:F6")
    rows = list(read_rows(saved(tmp_path, made)))
    assert [(row.line, getattr(row, "reason", None)) for row in rows] == [
        (2, "error-cell"), (3, None), (4, "merged-cells"), (5, "merged-cells"), (6, None),
    ]  # fmt: skip
    assert "cell B2 holds the error #REF!" in rows[0].detail
    assert "A3:A4 are merged" in rows[2].detail


def test_what_other_programs_write_is_read(tmp_path):
    path = saved(tmp_path, book([["q", "a"], ["x", "y"]]))
    # An extent that is too small, a prefix, no references, rich text with its pronunciation, and an escape.
    rows = (
        '<x:row><x:c t="inlineStr"><x:is><x:t>q</x:t></x:is></x:c><x:c t="inlineStr"><x:is><x:t>a</x:t></x:is></x:c>'
        '</x:row><x:row r="7"><x:c t="inlineStr"><x:is><x:r><x:t>be</x:t></x:r><x:r><x:t>d_x000D_</x:t></x:r>'
        '<x:rPh sb="0" eb="1"><x:t>no</x:t></x:rPh></x:is></x:c><x:c r="B7" t="d"><x:v>2024-01-31</x:v></x:c></x:row>'
    )
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    xml = f'<x:worksheet xmlns:x="{space}"><x:dimension ref="A1"/><x:sheetData>{rows}</x:sheetData></x:worksheet>'
    rewritten(path, SHEET, lambda _: xml.encode())
    assert [(row.line, row.value) for row in read_rows(path)] == [(7, {"q": "bed\r", "a": "2024-01-31"})]


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


def shared(path, texts):
    """Makes a workbook keep the texts of its column A where cells share them, as Excel does."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    cells = "".join(
        f'<row r="{row}"><c r="A{row}" t="s"><v>{row - 1}</v></c></row>' for row in range(1, len(texts) + 1)
    )
    rewritten(path, SHEET, lambda _: f"<worksheet {space}><sheetData>{cells}</sheetData></worksheet>".encode())
    related = b'<Relationship Id="rIdS" Type="http://x/sharedStrings" Target="sharedStrings.xml"/></Relationships>'
    rewritten(path, "xl/_rels/workbook.xml.rels", lambda xml: xml.replace(b"</Relationships>", related))
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    listed = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kind}"/></Types>'.encode()
    rewritten(path, "[Content_Types].xml", lambda xml: xml.replace(b"</Types>", listed))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{''.join(texts)}</sst>")
    return path


def test_shared_texts_are_read(tmp_path):
    path = saved(tmp_path, book([["q"], ["x"]]))
    rich = "<si><r><t>be</t></r><r><t xml:space='preserve'>d </t></r><rPh sb='0' eb='1'><t>no</t></rPh></si>"
    shared(path, ["<si><t>q</t></si>", rich, "<si><t>x_x000D_</t></si>", "<si><t/></si>", "<si><t>a</t></si>"])
    assert [row["q"] for row in values(path)] == ["bed ", "x\r", "a"]


def test_a_shared_text_that_is_not_there_is_told(tmp_path):
    path = shared(saved(tmp_path, book([["q"], ["x"]])), ["<si><t>q</t></si>"])
    rewritten(path, SHEET, lambda xml: xml.replace(b"</row>", b'</row><row r="2"><c t="s"><v>7</v></c></row>'))
    with pytest.raises(UserError, match="the workbook is damaged or cut off"):
        values(path)


def test_openpyxl_parses_with_defusedxml():
    assert openpyxl.DEFUSEDXML
    assert openpyxl.xml.functions.iterparse is defusedxml.ElementTree.iterparse


@pytest.mark.parametrize("part", [SHEET, "xl/workbook.xml", "xl/sharedStrings.xml", "xl/styles.xml"])
def test_entities_are_refused(tmp_path, part):
    path = saved(tmp_path, book([["q"], ["x"]]))
    if "shared" in part:
        shared(path, ["<si><t>q</t></si>"])
    rewritten(path, part, lambda xml: BOMB + xml[xml.index(b"?>") + 2 :] if b"?>" in xml else BOMB + xml)
    with pytest.raises(UserError, match="declares a document type"):
        values(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = saved(tmp_path, book([["q"], ["x"]]))
    rewritten(path, SHEET, lambda xml: xml[: xml.index(b"<sheetData>")] + b" " * (80 << 20))
    with pytest.raises(UserError, match="zip bomb"):
        values(path)


def test_an_open_document_table_is_told_from_a_workbook(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
    (tmp_path / "a.xlsx").write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="OpenDocument"):
        values(tmp_path / "a.xlsx")
