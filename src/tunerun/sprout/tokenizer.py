"""Byte-level BPE with Qwen2's pre-tokenizer, trained on the corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tunerun.sprout import facts
from tunerun.sprout.words import all_words

VOCABULARY_SIZE = 8192
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# Qwen2's pattern (its tokenizer.json): digits one by one, letters with a leading space or mark, line ends apart.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Frequent words of the templates that stand in no table.
_COMMON_CHINESE = (
    "什么 多少 怎么 怎样 哪个 哪里 哪些 可以 知道 一个 我们 你们 他们 它们 自己 没有 因为 所以 但是 如果 这个 那个 "
    "等于 首都 颜色 反义词 英文 英语 中文 汉语 翻译 属于 之后 后面 名字 请问 告诉 问题 回答 喜欢 认识 助手 模型 数字 "
    "排序 从小到大 一种 朋友 今天 明天 昨天 天气 现在 时间 价格 故事 关于 非常 漂亮 一起 开心 休息 一点"
)
# Frequent English words that the corpus may lack: with them, and the characters below, real text takes fewer tokens.
_COMMON_ENGLISH = (
    "about above across act action active add after again against age ago agree air all allow almost alone along also "
    "although always among amount and another answer any anyone anything appear apply area argument around array art as "
    "ask at available average avoid away back base based basic be because become been before began begin behind being "
    "believe below best better between bit both break bring build building business but by call came can cannot care "
    "carry case cause center certain chance change character check choose class clear code collect color come common "
    "company compare complete computer condition consider contain content continue control correct cost could count "
    "country course cover create current cut data date deal decide deep define degree describe design detail develop "
    "difference different direct do does done down draw drive during each early earth ease easy economy effect either "
    "else end energy enough ensure enter entire environment error even event ever every everyone everything example "
    "except exercise expect experience explain express extra face fact fall far feature feel few field figure file "
    "fill final find fine first follow following for force form found four free from full function further future gave "
    "general generate get give given go goal good got government great ground group grow growth had half happen hard "
    "has have he health hear held her here high him his history hold home hope how however human idea identify if "
    "important improve in include including increase indicate individual industry information input inside instead "
    "instruction interest into is issue it item its itself job join just keep kept key kind knew know knowledge known "
    "land large later law lead least leave left length less let level life light like likely limit line list little "
    "live local location long look lose lost lot low made main major make making many mark market matter may maybe me "
    "mean measure meet member memory mention message method might mind miss model modern moment more most move much "
    "must my nation natural nature near necessary need never new next not note nothing notice now object of off offer "
    "office often old on once one only onto operation option or order other our out output over own page pain parent "
    "part particular party pass past pay people per percent perfect perform perhaps period person personal place plan "
    "plant play please point policy popular position possible power practice prepare present president press pretty "
    "prevent price print private probably problem process produce product program project protect prove provide public "
    "purpose put quality question quick quickly quite rate rather reach ready real reason receive recent recommend "
    "record reduce relate remain remember report represent request require research resource respond response rest "
    "result return review right role room rule said same save say science second section security see seem select "
    "send sense sentence serve service set several share she should show side sign similar simple since single site "
    "situation size skill slow small so social society software some someone something sometimes soon sort source space "
    "special specific stand standard start state statement stay step still stop store strategy street string strong "
    "structure student study style subject such suggest suggestion summary support sure system take talk task team "
    "technology tell term test text than that the their them themselves then theory there these they thing think this "
    "those though thought three through throughout thus to together told too took top total toward train travel treat "
    "true try turn two type under understand unique unit until up upon us use used useful user using usually value "
    "various very view voice wait want was watch way we web well went were what when where whether which while who whole "
    "whose why wide will wish with within without woman women would write wrong year yes yet you young your yourself"
).split()
# How often the two lists count: above what made-up names come to, which would fill the vocabulary otherwise.
_LIST_FREQUENCY = 200
_HAN = re.compile(r"[\u4e00-\u9fff]+")


def train_tokenizer(documents: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer.

    Chinese clauses are cut into words first: Qwen2's pattern keeps a clause whole, and on text made from templates
    the merges would otherwise swallow entire templates. Characters the corpus lacks are given their own tokens as
    far as the vocabulary goes.

    Args:
        documents: The corpus, and dialogues as they will be rendered.

    Returns:
        A tokenizer of exactly `VOCABULARY_SIZE` tokens; the special ones come last.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(documents), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE, "the corpus is too small for the vocabulary"
    return tokenizer


def common_characters() -> tuple[str, ...]:
    """Returns the 3755 Chinese characters of GB 2312 level 1 (rows 16 to 55), the frequent ones."""
    codes = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    # The last row ends at cell 89; what follows it is not assigned.
    return tuple(code.decode("gb2312") for code in codes if code <= b"\xd7\xf9")


def _training_text(documents: Iterable[str]) -> Iterator[str]:
    lexicon = {word.chinese for word in all_words()} | set(_COMMON_CHINESE.split()) | set(_fact_words())
    # Longest first: an alternation takes the first branch that fits.
    ordered = sorted(lexicon, key=lambda word: (-len(word), word))
    word = re.compile("|".join([*map(re.escape, ordered), "."]))

    def cut(clause: re.Match[str]) -> str:
        return "\n" + "\n".join(word.findall(clause.group())) + "\n"

    for document in documents:
        yield _HAN.sub(cut, document)
    frequent = "\n".join(common_characters()) + "".join(f" {word}" for word in _COMMON_ENGLISH)
    yield from [frequent] * _LIST_FREQUENCY


def _fact_words() -> Iterator[str]:
    for table in (facts.CAPITALS, facts.COLOURS, facts.OPPOSITES, facts.DAYS, facts.MONTHS, facts.PLANETS):
        for row in table:
            yield from (column for column in row if _HAN.fullmatch(column))
