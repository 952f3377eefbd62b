from __future__ import annotations

from tunerun.data.answer.journal import open_journal
from tunerun.data.answer.reply import parse


def reply(text: str):
    return parse({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def test_what_was_added_is_found_again(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    with open_journal(path) as journal:
        journal.add("a", reply("Grüße\n\u2028 你好"))
        journal.add("b", reply("two"))
    with open_journal(path) as journal:
        assert (len(journal), journal.damaged) == (2, 0)
        assert journal.find("a") == reply("Grüße\n\u2028 你好")
        assert journal.find("c") is None


def test_a_line_that_was_cut_off_is_removed_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    with open_journal(path) as journal:
        journal.add("a", reply("one"))
        journal.add("b", reply("two"))
    path.write_bytes(path.read_bytes()[:-5])
    with open_journal(path) as journal:
        assert (journal.find("a"), journal.find("b")) == (reply("one"), None)
        journal.add("c", reply("three"))
    with open_journal(path) as journal:
        assert (len(journal), journal.find("c")) == (2, reply("three"))


def test_lines_that_say_nothing_are_counted_and_passed_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    with open_journal(path) as journal:
        journal.add("a", reply("one"))
    path.write_bytes(b'\x00\xff garbage\n{"key": "b"}\n[]\n' + path.read_bytes())
    with open_journal(path) as journal:
        assert (len(journal), journal.damaged) == (1, 3)
