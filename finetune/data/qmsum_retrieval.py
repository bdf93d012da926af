"""Questions to the meeting that answers them, from files of QMSum (Zhong et al. 2021, arXiv 2104.05938), as a test for
finetune/embedding.py.

python finetune/data/qmsum_retrieval.py OUT FILE.jsonl ... [--meetings N] [--summaries]

A document is the whole transcript. A question's evidence stands where the first turn does that answers it; with
--summaries a query is the summary of a whole meeting, whose evidence is spread over all of it.
"""

import argparse
import json
from pathlib import Path

from longbert.finetuning.retrieval.collection import write_retrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--meetings", type=int, help="the first so many; by default all")
    parser.add_argument(
        "--summaries", action="store_true", help="ask by the meetings' summaries, not by their questions"
    )
    arguments = parser.parse_args()
    lines = [line for file in arguments.files for line in Path(file).read_text("utf-8").splitlines()]
    corpus, queries = [], []
    for number, meeting in enumerate(map(json.loads, lines[: arguments.meetings])):
        turns = [f"{turn['speaker']}: {turn['content']}\n" for turn in meeting["meeting_transcripts"]]
        corpus.append({"id": f"meeting-{number}", "text": "".join(turns)})
        if arguments.summaries:
            if not meeting["general_query_list"]:
                parser.error(f"meeting {number} has no summary (general_query_list is empty): leave it out")
            summary = meeting["general_query_list"][0]["answer"]
            queries.append({"id": f"summary-{number}", "text": summary, "document": f"meeting-{number}"})
            continue
        for place, query in enumerate(meeting["specific_query_list"]):
            if not query["relevant_text_span"]:
                parser.error(f"question {place} of meeting {number} has no turn that answers it: leave it out")
            first = min(int(start) for start, _ in query["relevant_text_span"])
            queries.append(
                {
                    "id": f"meeting-{number}-{place}",
                    "text": query["query"],
                    "document": f"meeting-{number}",
                    "evidence": len("".join(turns[:first])),
                }
            )
    write_retrieval(arguments.out, corpus, queries)
    print(f"{len(queries)} queries to {len(corpus)} meetings")


if __name__ == "__main__":
    main()
