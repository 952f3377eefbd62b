"""What `tunerun VERB --help` prints, for verbs that have more to say than their line in `tunerun --help`."""

from __future__ import annotations

USAGE = {
    "plan": """\
Composes and checks the config, and prints what a run would do: stages, commands, steps, memory by
part, time and disk, and what this machine lacks for it. Needs no GPU, no torch and no download.

  --json               as JSON, with the command of each stage
  --config-dir FOLDER  a further folder of option files, as Hydra takes it

  tunerun plan +recipe=qwen2.5-lora data.path=rows.jsonl hardware.gpu=rtx4090""",
    "runs": """\
Lists the runs below FOLDER (./outputs), the newest first.

  --state STATE  only runs in this state: done, failed, killed, preempted, running, queued, ...;
                 may be repeated
  --like WORD    only runs with WORD in their name, folder or base model; may be repeated
  --sort KEY     created, took or loss

  tunerun runs --state failed --like qwen""",
    "show": """\
Prints the stages of a run with their state, its losses, answers and checks, and its files.""",
    "diff": """\
Prints what differs between two runs, side by side: config, data, environment, metrics and files.""",
    "replay": """\
Runs it again from its record, in a new directory, and compares every file and metric. First it says
what is not as recorded: code, packages, machine, models, data. Exit code 0: the same; 3: something
differs, and is named.

  run_dir=FOLDER  the new directory (outputs/NAME/ID)""",
    "sweep": """\
  show DIR         prints the trials of a sweep by rank
  best DIR [NAME]  writes the best trial as recipes/NAME.yaml
  wandb ...        prints what `tunerun -m ...` would try, as a file for `wandb sweep`

  tunerun sweep best outputs/sweeps/ID tuned
  tunerun sweep wandb +recipe=quickstart method.rank=4,8 > sweep.yaml

A sweep is started by `tunerun -m`, and goes on with `tunerun resume DIR`.""",
    "lock": """\
Writes recipes/NAME.yaml (RECIPE-locked.yaml): every key of a finished run, with the hashes of its
model, data and files and the versions of its packages. It refuses to run where one is another.""",
    "resume": """\
Goes on with a run, or a sweep, that was stopped or failed: stages that are done are skipped, and
training goes on from its newest checkpoint.

  key=value    changes a key; those of a sweep cannot be changed
  --allow KEY  goes on although KEY, on which training depends, is another; may be repeated

  tunerun resume outputs/quickstart/RUN train.max_steps=200 --allow train.max_steps""",
    "serve": """\
Serves models behind one address, to OpenAI clients and a chat page for browsers, until Ctrl+C.
TARGET is a run, a model folder, an adapter folder, a GGUF file or a hub id; BASE+ADAPTER an adapter
on its base.

  serve.KEY=VALUE  host, port, engine, limits: conf/README.md has every key of `serve`. Without it,
                   the config of the first RUN decides; but never host, port, api_key_env,
                   cors_origins, extra_args and env.serve.python: those are typed
  --names A,B      what clients call the models
  --checkpoints    each run's base model and checkpoints, too
  --force          models that failed a verify gate, too

  tunerun serve outputs/quickstart/RUN serve.port=8001
  tunerun serve base.gguf base.gguf+lora.gguf --names base,tuned""",
    "copy": """\
Copies a recipe to recipes/NAME.yaml of this folder, where it goes before the shipped one.

  --flat  every key of it in one file that needs no option files""",
    "pull": """\
Downloads a model into the hub's cache, going on with what an earlier try left, and prints its
folder and revision.

  --hub HUB           hf (default) or modelscope
  --revision REV      branch, tag or commit
  --cache-dir FOLDER  instead of the hub's own cache

  tunerun pull Qwen/Qwen2.5-0.5B-Instruct""",
}
