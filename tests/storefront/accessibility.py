"""What a machine can check of a page's accessibility: axe-core, and what it does not measure.

The scripts run in the page, beside its Content-Security-Policy, which is not in force for the DevTools protocol.
"""

from __future__ import annotations

import json
from importlib.resources import files

from tests.support.browser import Tab

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
# WCAG 2.2 A and AA, with all earlier versions, and what axe-core recommends beyond (headings in order, landmarks).
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]
# The rules whose result depends on the sizes of window and text.
SIZE_RULES = ["target-size", "scrollable-region-focusable"]

_VIOLATIONS = """(async () => {
  const { violations } = await axe.run(document, {
    runOnly: %s,
    // Off by default, although its success criterion (2.5.8) is AA.
    rules: { "target-size": { enabled: true } },
    resultTypes: ["violations"],
  });
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target.join(" ")}`));
})()"""

# Text that is outside of the window, of its button, or of a box that clips it.
_CUT = """(() => {
  const { clientWidth: width, scrollWidth } = document.documentElement;
  const found = [];
  if (scrollWidth > width) found.push(`the page is ${scrollWidth} px wide`);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest(".skip, script, style, noscript, datalist, option")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    let isForScreenReaders = false;
    const boxes = [{ left: 0, right: width, top: -Infinity, bottom: Infinity }];
    for (let element = parent; element !== document.body; element = element.parentElement) {
      const { overflow, clipPath } = getComputedStyle(element);
      if (clipPath === "inset(50%)") isForScreenReaders = true;
      const clips = overflow !== "visible";
      if (clips || element.matches("button, .button")) boxes.push(element.getBoundingClientRect());
    }
    for (const rect of range.getClientRects()) {
      const isCut = ({ left, right, top, bottom }) =>
        rect.left < left - 1 || rect.right > right + 1 || rect.top < top - 1 || rect.bottom > bottom + 1;
      if (rect.width > 0 && !isForScreenReaders && boxes.some(isCut)) {
        found.push(`cut: ${node.data.trim().slice(0, 60)}`);
        break;
      }
    }
  }
  for (const field of document.querySelectorAll("input[type=number]"))
    if (field.scrollWidth > field.clientWidth + 1) found.push(`cut: the value of ${field.name}`);
  return found;
})()"""

# Elements that show no outline, or are outside of the window, while they have the focus.
_UNSEEN_FOCUS = """(() => {
  const found = [];
  const outline = (element) => {
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    return outlineStyle === "none" ? 0 : parseFloat(outlineWidth);
  };
  const focusable = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']";
  for (const element of document.querySelectorAll(focusable)) {
    if (element.disabled || element.getClientRects().length === 0) continue;
    element.focus();
    let widest = 0;
    for (let at = element; at !== document.body; at = at.parentElement) widest = Math.max(widest, outline(at));
    const { left, right, top, bottom } = element.getBoundingClientRect();
    const isOutside = right <= 0 || bottom <= 0 || left >= innerWidth || top >= innerHeight;
    if (document.activeElement !== element || widest < 2 || isOutside)
      found.push(`no visible focus: ${element.outerHTML.slice(0, 80)}`);
  }
  document.activeElement?.blur();
  scrollTo(0, 0);
  return found;
})()"""

_UNSIZED_PICTURES = """[...document.querySelectorAll("img")]
  .filter((img) => !(img.getAttribute("width") > 0 && img.getAttribute("height") > 0))
  .map((img) => `a picture without a size: ${img.src}`)"""


async def set_screen(
    tab: Tab, *, width: int = 1280, height: int = 900, text_size: int = 16, scheme: str = "light"
) -> None:
    """Change the window, the text size of the browser's settings, and the colour scheme, without a reload.

    width, height, text_size: in px. scheme: "light" or "dark".
    """
    await tab.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640
    )
    await tab.call("Page.setFontSizes", fontSizes={"standard": text_size, "fixed": text_size})
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    await tab.call("Emulation.setEmulatedMedia", features=features)


async def find_violations(tab: Tab, *, rules: list[str] | None = None) -> list[str]:
    """Return what axe-core finds in the page: the rule and the element. `rules`: by default all of `TAGS`."""
    if not await tab.evaluate("typeof axe === 'object'"):
        await tab.evaluate(f"{AXE}; true")
    only = {"type": "tag", "values": TAGS} if rules is None else {"type": "rule", "values": rules}
    return await _found(tab, _VIOLATIONS % json.dumps(only))


async def find_cut_text(tab: Tab) -> list[str]:
    """Return the texts that cannot be read in full, and whether one has to scroll sideways."""
    return await _found(tab, _CUT)


async def find_unseen_focus(tab: Tab) -> list[str]:
    """Return the elements that a visitor with a keyboard reaches without seeing it."""
    # After a key, browsers show the focus that a script moves, too.
    await tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
    for event in ("keyDown", "keyUp"):
        await tab.call("Input.dispatchKeyEvent", type=event, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    return await _found(tab, _UNSEEN_FOCUS)


async def find_unsized_pictures(tab: Tab) -> list[str]:
    """Return the pictures that move the page when they arrive."""
    return await _found(tab, _UNSIZED_PICTURES)


async def _found(tab: Tab, script: str) -> list[str]:
    found = await tab.evaluate(script)
    assert isinstance(found, list), f"the script of the check has failed: {found}"
    return [str(text) for text in found]
