"""``llamalite serve``: answers over HTTP, in OpenAI's and Anthropic's protocols."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamalite.cli import _options, _text

if TYPE_CHECKING:
    from llamalite.model_options import ModelOptions
    from llamalite.server.models import ServedModel

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_MISSING = "llamalite serve needs the extra: pip install 'llamalite[serve]' (in the checkout: pip install '.[serve]')"


@click.command(name="serve")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    help="The addresses to listen on, separated by commas.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--parallel", type=_options.COUNT, default=4, show_default=True, help="Answers that a model gives at once."
)
@click.option("--queue", type=_options.COUNT_OR_NONE, default=64, show_default=True, help="Answers that may wait.")
@click.option("--api-key", multiple=True, metavar="KEY", help="A key that requests must carry; repeatable.")
@click.option("--api-key-file", type=_FILE, metavar="FILE", help="A file of such keys, one a line.")
@click.option("--alias", multiple=True, metavar="NAME", help="Another name for the model; * answers to every name.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Pages of ORIGIN may ask; * is all. Repeatable.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name by which a proxy addresses this server.")
@click.option("--grace", type=_options.Number(0), default=30.0, show_default=True, metavar="S",
              help="Seconds that running answers have after SIGTERM.")  # fmt: skip
@click.option("--pooling", type=click.Choice(["mean", "last", "cls"]),
              help="How to make a text's vector. Default: as the model's file says, else mean.")  # fmt: skip
@click.option("--no-page", is_flag=True, help="No page to chat on at /.")
@click.option("--open", "opens", is_flag=True, help="Open that page in a browser.")
@click.option("--slots", is_flag=True, help="Tell at /slots what runs.")
@click.option("--log-json", is_flag=True, help="Log each request as a JSON object.")
@click.option("-n", "--max-tokens", type=_options.COUNT_OR_NONE, metavar="N",
              help="Maximum tokens of an answer that sets none.")  # fmt: skip
@_options.sampling
@click.option("--seed", type=_options.SEED, metavar="N", help="The seed of answers that set none.")
@_options.loading
@click.option("--chat-template", type=_FILE, metavar="FILE", help="A chat template (Jinja) instead of the model's.")
@click.pass_context
def command(ctx: click.Context, /, models: tuple[str, ...], **options: Any) -> None:
    """Serve models over HTTP: to OpenAI's clients, to Anthropic's, and on a page to chat on.

    MODEL means what it means in `llamalite run`. One model is loaded at once; of several, each is loaded when it is
    first asked for, and unloaded when another needs its memory. Without MODEL, all of the models folder are served.

    \b
    Examples:
      llamalite serve demo
      llamalite serve TinyLlama-1.1B --parallel 8 --ctx 16384
      llamalite serve --host 0.0.0.0 --api-key-file keys.txt
      curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "Tell me a story."}]}'
    """
    try:
        from llamalite.server.app import make_app
        from llamalite.server.models import ModelPool
        from llamalite.server.running import listen, run, url_of
        from llamalite.server.settings import ServerSettings
    except ImportError as error:
        raise click.ClickException(f"{_MISSING} ({error})") from None

    _log(ctx, as_json=options["log_json"])
    keys = _keys(options)
    chosen = {name: options[name] for name in ("max_tokens", "seed", *_options.SAMPLING) if options[name] is not None}
    model_options = _model_options(ctx, options)
    served = _served(ctx, models, options["alias"])
    settings = ServerSettings(
        api_keys=keys,
        hosts=(*options["allow_host"], *options["host"].split(",")),
        cors=options["cors"],
        n_parallel=options["parallel"],
        sampling=chosen,
        has_page=not options["no_page"],
        shows_slots=options["slots"],
        pooling=options["pooling"],
        is_verbose=ctx.obj["verbose"] > 1,
    )
    app = make_app(ModelPool(served, model_options), settings)
    bound = listen(options["host"], options["port"])
    if not all(map(_is_loopback, options["host"].split(","))) and not keys:
        click.secho("warning: ", fg="yellow", err=True, nl=False)
        click.echo(f"whoever reaches {options['host']} may use these models: set --api-key", err=True)
    url = url_of(options["host"].split(",")[0], bound[0])

    def on_start() -> None:
        if not ctx.obj["quiet"]:
            names = ", ".join(_text.clean(one.name) for one in served)
            click.echo(f"Serving {names} at {url}", err=True)
        if options["opens"]:
            import webbrowser

            webbrowser.open(url)

    run(app, bound, grace_s=options["grace"], on_start=on_start, eager=served[0] if len(served) == 1 else None)


def _log(ctx: click.Context, *, as_json: bool) -> None:
    """Show a line for each request on standard error, but for -q."""
    from llamalite.server.access_log import JsonLines, access_logger

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else _PlainLines())
    access_logger.handlers, access_logger.propagate = [handler], False
    access_logger.setLevel(logging.WARNING if ctx.obj["quiet"] else logging.INFO)


class _PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _text.clean(super().format(record))


def _keys(options: dict[str, Any]) -> tuple[str, ...]:
    keys = list(options["api_key"])
    if options["api_key_file"]:
        lines = _text.read(options["api_key_file"]).splitlines()
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ValueError(f"{options['api_key_file']} has no key: write one a line")
    if any(not key.strip() or not key.isascii() for key in keys):
        raise click.UsageError("an API key has to be visible ASCII characters")
    return tuple(keys)


def _model_options(ctx: click.Context, options: dict[str, Any]) -> ModelOptions:
    from llamalite.cli import _model
    from llamalite.model_options import ModelOptions

    template = options["chat_template"]
    own: dict[str, Any] = {"chat_template": _text.read(template)} if template else {}
    if "n_parallel" in {field.name for field in dataclasses.fields(ModelOptions)}:
        own |= {"n_parallel": options["parallel"], "max_queue": options["queue"]}
    draft = _model.obtain(ctx, options["draft"]) if options["draft"] else None
    return ModelOptions(**_options.loaded_with(options), draft=draft, **own)


def _served(ctx: click.Context, models: tuple[str, ...], aliases: tuple[str, ...]) -> list[ServedModel]:
    """Return what is served: each MODEL, or all of the models folder."""
    from llamalite import store
    from llamalite.cli import _model
    from llamalite.server.models import ServedModel

    if not models:
        paths = store.list_models()
        if not paths:
            raise FileNotFoundError(f"no models in {store.models_folder()} yet: llamalite serve demo makes one")
        served = [ServedModel(store.shortest_name(path), path) for path in paths]
    else:
        served = []
        for model in dict.fromkeys(models):
            path = _model.obtain(ctx, model)
            name = store.name_of(path)
            served.append(ServedModel(name, path, () if model == name or os.sep in model else (model,)))
    if aliases and len(served) > 1:
        raise click.UsageError("--alias is for one model: name the others as they are")
    if aliases:
        shown = next((alias for alias in aliases if alias != "*"), served[0].name)
        served[0].aliases = tuple(dict.fromkeys((served[0].name, *served[0].aliases, *aliases)))
        served[0].name = shown
    return served


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip()).is_loopback
    except ValueError:
        return host.strip() == "localhost"
