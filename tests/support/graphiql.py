"""What a visitor of the GraphiQL page does, in a browser that a test operates."""

from __future__ import annotations

import json
from typing import Any

from tests.support.browser import Tab

# What the bar above the editors says, in one line.
BAR = "document.getElementById('access').innerText.replaceAll(/\\s+/g, ' ').trim()"
# The editors of the query, the variables and the headers.
EDITORS = "document.querySelectorAll('.CodeMirror')"


async def press(page: Tab, label: str) -> None:
    """Press the button of the bar as soon as it is there."""
    found = f"[...document.querySelectorAll('#access button')].find((b) => b.textContent === {json.dumps(label)})"
    await page.until(f"{found} !== undefined")
    await page.evaluate(f"{found}.click()")


async def run_query(page: Tab, query: str, headers: str = "") -> Any:
    """Run the query with the headers, which are a text, and return what GraphiQL shows."""
    await page.until(f"{EDITORS}.length >= 3")
    await page.evaluate(f"{EDITORS}[0].CodeMirror.setValue({json.dumps(query)})")
    await page.evaluate("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Headers').click()")
    await page.evaluate(f"{EDITORS}[2].CodeMirror.setValue({json.dumps(headers)})")
    shown = "document.querySelector('.result-window .CodeMirror').CodeMirror"
    await page.evaluate(f"{shown}.setValue('')")
    # With more than one operation in the editor, the button opens a menu.
    await page.until("document.querySelector('.graphiql-execute-button').getAttribute('aria-haspopup') === null")
    await page.evaluate("document.querySelector('.graphiql-execute-button').click()")
    return json.loads(await page.until(f"{shown}.getValue()"))
