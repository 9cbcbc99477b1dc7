"""Jinja2 templates, which lie in the folder `templates` of a package."""

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Makes the environment of a package's templates.

    It escapes for HTML everything that a template inserts, and refuses names that it was not given.

    Args:
        package: as in an import: "anpvs_tf.reporting".
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
