"""Builds everything the shipped base model `sprout` is trained from: text, dialogues, tokenizer, configuration.

    tables, words       the tables of facts and bilingual words, and their reader
    family              a family of questions: items, phrasings, one answer
    knowledge, vocabulary, numbers, talk, copying      the families themselves
    stories, tools      text and dialogues that are not question and answer
    corpus, dialogues   draw the two training files and the evaluation file
    score               counts the right answers of a trained model
    tokenizer, base     byte-level BPE and the model folder without weights

Every sentence is made here from the tables and templates of this package, so the files are the same bytes each time.
"""
