"""``llamalite eval``: evaluates a model on standard tasks with lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

import click

from llamalite.cli import _options
from llamalite.cli._progress import is_watched
from llamalite.cli._table import print_table


@click.command("eval")
@click.argument("model")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--limit", type=_options.COUNT, metavar="N", help="Use only the first N samples of each task.")
@click.option(
    "--few-shot",
    "num_fewshot",
    type=_options.COUNT_OR_NONE,
    metavar="N",
    help="Number of examples before each question.",
)
@click.option("--ctx", "n_ctx", type=_options.COUNT, metavar="N",
              help="Tokens of context. Default: 2048, or less if the model was trained for less.")  # fmt: skip
@click.option("--chat", is_flag=True, help="Use the model's chat template.")
@click.option("--include", "include_path", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A folder with tasks of your own, in the harness's YAML.")  # fmt: skip
@click.option("--exact", is_flag=True, help="F32 cache, no flash attention: figures that agree across machines.")
@_options.threads("n_threads")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    tasks: tuple[str, ...],
    limit: int | None,
    num_fewshot: int | None,
    n_ctx: int | None,
    chat: bool,
    include_path: Path | None,
    exact: bool,
    n_threads: int | None,
    as_json: bool,
) -> None:
    """Evaluate MODEL on tasks of lm-evaluation-harness (the extra eval).

    TASK is a name from that library. Six small tasks come with llamalite and need no network: sentiment, named
    entities, translation, summary, reading and sums. Together they are called llamalite_small.

    \b
    Examples:
      llamalite eval demo llamalite_small --chat
      llamalite eval my-llama arc_easy hellaswag --limit 200
      llamalite eval my-llama my_task --include ./tasks --json
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise click.ClickException("tasks need lm-evaluation-harness: pip install lm-eval rouge-score")
    if not is_watched(ctx.obj, sys.stderr):
        os.environ["TQDM_DISABLE"] = "1"  # the harness draws its own bars
    if not ctx.obj["verbose"]:  # the harness logs every setting that a task leaves at its default
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import lm_eval
    from lm_eval.tasks import TaskManager

    from llamalite.cli import _model
    from llamalite.evaluation import tasks as own_tasks
    from llamalite.evaluation.harness import LlamaliteLM

    folders = [Path(own_tasks.__file__).parent, *([include_path] if include_path else [])]
    manager = TaskManager(include_path=[str(folder) for folder in folders])
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise click.ClickException(f"there is no task {', '.join(unknown)}; lm_eval --tasks list shows all")
    path = _model.obtain(ctx, model)
    with contextlib.redirect_stdout(sys.stderr):  # the harness prints while it computes errors by bootstrapping
        report = lm_eval.simple_evaluate(
            model=LlamaliteLM(str(path), max_length=n_ctx, exact=exact, n_threads=n_threads),
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=chat,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    if as_json:
        wanted = {name: report[name] for name in ("results", "versions", "n-shot", "n-samples") if name in report}
        click.echo(json.dumps(wanted, indent=2, default=str))
        return
    rows = []
    for task, metrics in report["results"].items():
        for name, value in metrics.items():
            metric, _, variant = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{variant}")
                rows.append((task, metric, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else ""))
    print_table(("TASK", "METRIC", "VALUE", "±"), rows, left=(0, 1, 3))
