import json


def test_a_second_build_writes_the_same_bytes(built, build_again):
    again = build_again()
    files = sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    assert [str(path) for path in files] == [
        "base/chat_template.jinja",
        "base/config.json",
        "base/generation_config.json",
        "base/tokenizer.json",
        "base/tokenizer_config.json",
        "corpus.jsonl",
        "instruct.jsonl",
        "instruct_eval.jsonl",
    ]
    assert all((built / path).read_bytes() == (again / path).read_bytes() for path in files)


def test_the_evaluation_asks_nothing_that_was_taught_in_the_same_words(built):
    taught = {
        message["content"]
        for line in (built / "instruct.jsonl").open(encoding="utf-8")
        for message in json.loads(line)["messages"]
        if message["role"] == "user"
    }
    corpus = (built / "corpus.jsonl").read_text(encoding="utf-8")
    asked = [
        json.loads(line)["messages"][0]["content"] for line in (built / "instruct_eval.jsonl").open(encoding="utf-8")
    ]
    assert len(asked) > 500
    assert not taught & set(asked)
    assert [question for question in asked if f"\n{question}\n" in corpus] == []
