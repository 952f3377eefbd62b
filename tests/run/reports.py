"""Reports as the stages write them, put into a run directory."""

from tunerun import artifacts

ENGLISH = "I am Ada, an assistant made by Example Labs, and I answer in English and Chinese."
CHINESE = "我是小苗，一个很小的语言模型，由一个小项目训练而成。我可以回答一些简单的问题。"


def evaluation(*, tuned=True, split="eval"):
    base = [
        {"prompt": "Who are you?", "answer": "I am <b>Sprout</b> | a model.", "tokens": 9, "stopped": True},
        {"prompt": "你是谁？", "answer": CHINESE, "tokens": 20, "stopped": True},
    ]
    after = [{**item, "answer": ENGLISH} for item in base]
    models = {"base": {"loss": 2.9312, "perplexity": 18.75, "answers": base}}
    if tuned:
        models["tuned"] = {"loss": 0.4471, "perplexity": 1.564, "answers": after}
    return {"schema": 1, "split": split, "rows": 48, "tokens": 2310, "models": models}


def tasks(value):
    metrics = [
        {"name": "acc", "filter": "none", "value": value, "stderr": 0.0123, "higher_is_better": True},
        {"name": "exact_match", "filter": "strict", "value": value / 2, "stderr": None, "higher_is_better": True},
    ]
    return {"hellaswag": {"samples": 100, "version": 1.0, "metrics": metrics}}


def teacher():
    return {
        "schema": 1,
        "prompts_read": 12,
        "prompts": 11,
        "bad_prompts": {"empty-prompt": 1},
        "rows": 9,
        "dropped": {"cut-off": 2},
        "cut_off_kept": 0,
        "look_like_refusals": 1,
        "models": {"big <b>teacher</b>": 9},
        "prompt_tokens": 300,
        "completion_tokens": 4500,
        "examples": [{"where": "q.txt:3", "reason": "cut-off", "detail": "the answer was cut off"}],
    }


def data():
    copy = {"file": "/data/rows.jsonl", "line": 9, "of": {"file": "/data/rows.jsonl", "line": 3}}
    return {
        "schema": 2,
        "rows_read": 480,
        "rows_kept": 474,
        "dropped": {"empty-answer": 6},
        "truncated": 3,
        "truncated_answers": 1,
        "zero_label": 0,
        "duplicates": {"exact": 0, "near": 1, "examples": [{**copy, "exact": False, "similarity": 0.91}]},
        "overlap": None,
        "unreadable": [],
        "examples": [{"file": "/data/rows.jsonl", "line": 17, "reason": "empty-answer", "detail": "empty"}],
        "sources": [{"file": "/data/rows.jsonl", "format": "alpaca", "why": "keys", "rows": 480, "weight": 1.0}],
        "rows": 310,
        "tokens": 31250,
        "trained_tokens": 18210,
        "packing_fill": 0.941,
        "sides": None,
        "labels": None,
        "eval": None,
        "length_tokens": {"min": 1, "median": 40, "max": 90, "bounds": [0, 32, 64, 96], "counts": [88, 210, 96]},
    }


def verification(*, verdict="pass"):
    gate = {
        "name": "merge_logits",
        "measured": {"mean_kl_nats": 2e-5},
        "bound": {"mean_kl_nats": 1e-3},
        "verdict": verdict,
        "reason": "",
    }
    return {"schema": 1, "level": "quick", "passed": verdict != "fail", "gates": [gate]}


def metrics(steps=5):
    rows = [
        {
            "step": step,
            "loss": 3.0 / step,
            "learning_rate": 1e-4,
            "grad_norm": 1.5,
            "tokens_per_second": 1000.0,
            "seconds": step * 0.1,
        }
        for step in range(1, steps + 1)
    ]
    return [*rows, {"step": steps, "eval_loss": 0.7, "eval_rougeL": 31.25, "eval_bleu4": 12.5}]


def put(run_dir, **reports):
    """Writes `eval=`, `data=` and `verify=` reports."""
    for folder, report in reports.items():
        artifacts.write_json(run_dir / folder / "report.json", report)
