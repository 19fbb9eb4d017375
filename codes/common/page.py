"""The shared shell of the self-contained HTML pages: one file, no network, light and dark, data escaped.

Data travels as JSON in a script element that is never run; the page's script may put it on the page as text only. A
content security policy lets nothing run but that one script, and nothing load at all.
"""

import base64
import hashlib
import html
from pathlib import Path

from codes.common.records import InputError, to_json

STYLE = Path(__file__).with_name("page.css")
# For pages that show texts and their differences; they stand before the page's own.
READING_SCRIPT, READING_STYLE = (Path(__file__).with_name(f"reading.{suffix}") for suffix in ("js", "css"))
# For pages of tables and charts; they stand behind those for reading.
FIGURES_SCRIPT, FIGURES_STYLE = (Path(__file__).with_name(f"figures.{suffix}") for suffix in ("js", "css"))


def html_page(title: str, *, body: str, script: str, data: object, style: str = "") -> str:
    """One HTML document. ``title`` is escaped here; ``body``, ``script`` and ``style`` are the page's own source.

    The script finds ``data`` as ``JSON.parse(document.getElementById("data").textContent)``.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{html.escape(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{embedded_json(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def source_text(*paths: Path) -> str:
    """The page's own script (or style): these files one after another."""
    return "".join(path.read_text(encoding="utf-8") for path in paths)


def refuse_no_page(output: Path, flag: str = "--output") -> None:
    """Raise InputError where a page would replace something that is no page."""
    if output.is_dir():
        raise InputError(f"{flag} {output}: is a folder")
    if output.exists():
        with open(output, "rb") as file:
            if file.read(15).lower() != b"<!doctype html>":
                raise InputError(f"{flag} {output}: exists and is no HTML page; choose another name")


def embedded_json(data: object) -> str:
    """JSON that can stand in a script element: no text in it can end the element or start a comment."""
    text = to_json(data, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
