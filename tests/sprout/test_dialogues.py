import itertools
import random

import pytest

from tunerun.sprout.dialogues import all_families, draw_eval_rows, draw_rows
from tunerun.sprout.family import draw, draw_held_out

FAMILIES = all_families()


@pytest.mark.parametrize("family", FAMILIES, ids=[f"{family.name}-{number}" for number, family in enumerate(FAMILIES)])
def test_every_template_of_a_family_fits_its_items(family):
    assert not set(family.questions) & set(family.held_out)
    assert not {str(item) for item in family.items} & {str(item) for item in family.held_out_items}
    rng = random.Random(0)
    drawn = [draw(family, rng) for _ in range(10)] + [draw_held_out(family, rng) for _ in range(10)]
    assert all(exchange.question and exchange.answer for exchange in drawn)
    for template, item in itertools.product(
        (*family.questions, *family.held_out, *family.statements), family.items[:3]
    ):
        assert "{" not in template.format_map(item)


def test_sums_and_differences_are_right():
    names = {"addition": "+", "subtraction": "-"}
    checked = 0
    for family in FAMILIES:
        if family.name in names:
            for item in family.items:
                a, b, result = int(item["a"]), int(item["b"]), int(item["result"])
                worked_out = {"+": a + b, "-": a - b}[names[family.name]]
                assert result == worked_out
                checked += 1
    assert checked == 2 * (11 * 11 + 11 * 12 // 2)


def test_roles_take_turns_and_the_assistant_ends():
    rows = list(draw_rows(2000, seed=5))
    for row in rows:
        roles = [message["role"] for message in row["messages"] if message["role"] != "system"]
        assert roles[0] == "user"
        assert roles[-1] == "assistant"
        assert all(first != second for first, second in itertools.pairwise(roles))
    kinds = {"tools" if "tools" in row else row["messages"][0]["role"] for row in rows}
    assert kinds == {"tools", "system", "user"}


def test_the_evaluation_covers_every_family_in_every_language():
    covered = {(row["family"], row["language"]) for row in draw_eval_rows(seed=5)}
    assert covered == {(family.name, family.language) for family in FAMILIES}
