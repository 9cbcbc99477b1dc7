"""The page of --format=web: networks, test images and the attack on them in one HTML file."""

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np
from markupsafe import Markup

from anpvs_tf.attacks import radius
from anpvs_tf.attacks import settings as attack_settings
from anpvs_tf.common import templates
from anpvs_tf.data.splits import Split
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.compact import Latent, freeze_with_latents
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.serving import web_network

FILE = "index.html"
IMAGES = 12

# The most that the check of the page may cost, in FLOPs: some 2 minutes in JavaScript, on one core.
_CHECK = 4e10
_FEWEST = 16

_FILES = pathlib.Path(__file__).parent / "web"
# The side in pixels that a dataset's images were enlarged from.
_ENLARGED_FROM = {"digits": 8}


@dataclasses.dataclass(frozen=True)
class Shown:
    """A network of the page.

    Attributes:
        run: that trained it.
        network: the training network.
        compact, latents: from `compact.freeze_with_latents`.
    """

    run: FinishedRun
    network: keras.Model
    compact: keras.Model
    latents: dict[str, Latent]


def prepare(run: FinishedRun) -> Shown:
    """Loads the network of a run and freezes it.

    Raises:
        UsageError: the weights are gone, or the network cannot be frozen.
    """
    network = run.network()
    return Shown(run, network, *freeze_with_latents(network))


def write(shown: list[Shown], test: Split, path: pathlib.Path) -> None:
    """Writes index.html, of all networks in it the exported one first.

    Raises:
        UsageError: the page has no layer like one of a network; the message names it.
    """
    (path / FILE).write_text(render(shown, test), encoding="utf-8")


def render(shown: list[Shown], test: Split) -> str:
    """Renders the page as HTML, by `templates/web_page.html`.

    Args:
        shown: the exported network, and the rival if there is one.
        test: test images; the first of each class are in the page.

    Raises:
        UsageError: as of `write`.
    """
    first = shown[0].run
    threat = first.trained["threat_model"]
    rows = chosen(test.labels)
    settings = first.settings
    content = {
        "classes": settings.class_names or [str(i) for i in range(settings.source.classes)],
        "images": {
            "labels": test.labels[rows].tolist(),
            "rows": rows.tolist(),
            "pixels": web_network.encoded(test.images[rows]),
        },
        "norm": threat["norm"],
        "epsilon": threat["epsilon"],
        "levels": "/" in radius.as_text(threat["epsilon"]),
        "steps": first.trained["attack"]["steps"],
        "radii": attack_settings.RADII,
        "drawn_on": _ENLARGED_FROM.get(settings.dataset, settings.source.image_shape[0]),
        "networks": [
            {"method": one.run.settings.method} | web_network.describe(one.compact, one.latents)
            for one in shown
        ],
    }
    held: dict[str, Any] = {
        "dataset": settings.dataset,
        "grey": settings.source.image_shape[-1] == 1,
        "norm": threat["norm"],
        "epsilon": radius.as_text(threat["epsilon"]),
        "networks": [_facts(one) for one in shown],
        "examples": len(rows),
        "latents": list(dict.fromkeys(name for one in shown for name in one.latents)),
        "content": content,
        "style": _text("page.css"),
        "scripts": {name: _text(f"{name}.js") for name in ("tfjs", "network", "page")},
        "license": (_FILES / "LICENSE.tfjs").read_text(encoding="utf-8"),
    }
    return templates.environment("anpvs_tf.serving").get_template("web_page.html").render(held)


def chosen(labels: np.ndarray) -> np.ndarray:
    """Chooses the images of the page: the first of each class, then the first others.

    Returns:
        Row numbers, at most `IMAGES`, of the first of each class by class.
    """
    firsts = np.unique(labels, return_index=True)[1][:IMAGES]
    others = np.setdiff1d(np.arange(len(labels)), firsts)[: IMAGES - len(firsts)]
    return np.concatenate([firsts, others])


def examples_of_check(shown: list[Shown], available: int) -> int:
    """Says how many test images the check takes: all, or fewer where the networks are large."""
    operations = sum(efficiency.flops(one.compact) for one in shown)
    return min(available, max(_FEWEST, int(_CHECK / operations)))


def _facts(one: Shown) -> dict[str, Any]:
    record, settings = one.run.trained, one.run.settings
    parameters = one.compact.count_params()
    return {
        "method": settings.method,
        "network": settings.network,
        "parameters": f"{parameters:,}",
        "bytes": _bytes(4 * parameters),
        "clean": f"{record['clean_accuracy']:.1%}",
        "robust": f"{record['robust_accuracy']:.1%}",
        "attack": f"PGD-{record['attack']['steps']}",
        "epsilon": radius.as_text(record["threat_model"]["epsilon"]),
        "pruned": record.get("sparsity", 0.0),
    }


def _bytes(number: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} bytes"


def _text(name: str) -> Markup:
    """Reads a script or style sheet of the package, which goes into the page as it is."""
    return Markup((_FILES / name).read_text(encoding="utf-8"))
