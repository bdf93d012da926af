"""Questions to the article that answers them, from a file in SQuAD's format (SQuAD, XQuAD, DRCD, CMRC), as a test for
finetune/embedding.py.

python finetune/data/squad_retrieval.py FILE.json OUT

The paragraphs of an article are one document; a question's evidence stands where its answer does.
"""

import sys

from longbert.finetuning.retrieval.collection import write_retrieval
from longbert.finetuning.tasks.question_answering import QuestionAnsweringArguments, read_questions


def main(file: str, out: str) -> None:
    questions = read_questions(file, QuestionAnsweringArguments(train_file=file, merge_articles=True))
    articles = {text: f"article-{number}" for number, text in enumerate(dict.fromkeys(questions["context"]))}
    queries = [
        {
            "id": question["id"],
            "text": question["question"],
            "document": articles[question["context"]],
            "evidence": question["answers"]["answer_start"][0],
        }
        for question in questions
        if question["answers"]["text"]
    ]
    corpus = [{"id": name, "text": text} for text, name in articles.items()]
    write_retrieval(out, corpus, queries)
    print(f"{len(queries)} questions to {len(corpus)} articles")


if __name__ == "__main__":
    main(*sys.argv[1:])
