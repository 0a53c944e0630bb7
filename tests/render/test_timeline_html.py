"""The page: it needs nothing else, and what its script adds up is the timeline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise

import pytest

from planner.render.timeline import Picture
from planner.render.timeline_html import page
from planner.timeline import Timeline, record
from planner.units import GIB, MIB
from tests import histories

# Stands for the browser: every element takes what it is given; the page's own functions run as they are.
BROWSER = """
const text = require("fs").readFileSync(0, "utf8");
const pick = (open, close) => text.slice(text.indexOf(open) + open.length, text.indexOf(close, text.indexOf(open)));
const json = pick('id="data">', "</script>"), script = pick("<script>", "</script>");
const anything = () => new Proxy(function () {}, {
  get: (target, name) => name in target && name !== "name" && name !== "length" ? target[name] : target[name] = anything(),
  set: (target, name, value) => (target[name] = value, true),
  apply: () => anything(),
});
const width = Number(process.argv.at(-1)), elements = {};
const pen = new Proxy({measureText: () => ({width: 9})}, {get: (target, name) => target[name] || (() => {}), set: () => true});
const canvas = {clientWidth: width, clientHeight: 460, addEventListener() {}, getContext: () => pen};
const document = {
  getElementById: id => id === "data" ? {textContent: json} : id === "canvas" ? canvas : elements[id] = elements[id] || anything(),
  createElement: anything, documentElement: {dataset: {}},
};
const window = {devicePixelRatio: 2, addEventListener() {}}, matchMedia = () => ({addEventListener() {}});
const getComputedStyle = () => ({getPropertyValue: () => "#000"}), requestAnimationFrame = draw => draw();
const result = new Function("document", "window", "matchMedia", "getComputedStyle", "requestAnimationFrame", script + `
  const first = [...drawn];
  layers[0].shown = false; sum(); zoom(n / 4, n / 2);
  return {allocated: [...allocated], reserved: [...reserved], drawn: first, zoomed: drawn,
          columns: Object.fromEntries(layers.map(layer => [layer.category, [...layer.column]]))};
`)(document, window, matchMedia, getComputedStyle, requestAnimationFrame);
console.log(JSON.stringify({...result, alarm: elements.alarm.hidden === false ? elements.alarm.textContent : null}));
"""


def shown(timeline: Timeline) -> Picture:
    return Picture(timeline, "some/model", "qlora", "Tesla T4")


def run(timeline: Timeline, width: int = 476) -> dict:
    """The page's script over a stand-in for a browser, its plot 400 pixels wide."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("runs the page's script with node")
    command = [node, "-e", BROWSER, str(width)]
    done = subprocess.run(command, input=page(shown(timeline)), capture_output=True, encoding="utf-8", check=False)

    assert done.stderr == ""

    return json.loads(done.stdout)


def test_it_needs_nothing_else():
    """No address but the data's own, no other file."""
    text = page(shown(record(histories.small())))

    assert re.findall(r"https?:|src=|@import|url\(", text) == []
    assert text.startswith("<!DOCTYPE html>")


def test_names_cannot_break_out():
    """A model's name or an operation's is text, whatever stands in it."""
    history = histories.small()
    history.names[0] = "</script><script>alert(1)</script>"
    text = page(Picture(record(history, whole_run=True), '<img src="x">', "</script>"))

    assert text.count("<script") == 2
    assert "<img" not in text


def test_the_script_adds_up_the_columns():
    """To the byte, for each category and what is reserved; the bare page runs without an error."""
    timeline = record(histories.training(3, 2, 8), 80 * GIB, whole_run=True)
    found = run(timeline)

    assert found["allocated"] == timeline.allocated
    assert found["reserved"] == timeline.reserved
    assert found["columns"] == {category.value: column for category, column in timeline.by_category.items()} | {
        name: [0] * len(timeline.allocated) for name in found["columns"].keys() - {c.value for c in timeline.by_category}
    }
    assert found["alarm"] is None


def test_no_peak_is_lost():
    """Each column of pixels shows the event at which most is allocated of those that it stands for."""
    timeline = record(histories.training(12, 1, 20))
    found, total = run(timeline), timeline.end - timeline.begin
    edges = [total * p // 400 for p in range(401)]

    assert total > 2000
    assert found["drawn"] == [
        max(range(a, b), key=lambda i: (timeline.allocated[i], -i)) for a, b in pairwise(edges)
    ]
    assert timeline.peak.event in found["drawn"]
    assert len(found["zoomed"]) == 400
    assert total // 4 - 1 <= min(found["zoomed"]) <= max(found["zoomed"]) <= total // 2 + 1


def test_fewer_events_than_pixels():
    """Each event is drawn as wide as it is."""
    timeline = record(histories.small())

    assert run(timeline)["drawn"] == [p * 8 // 400 for p in range(400)]


def test_a_full_card_is_an_alarm():
    """In a sentence, above the picture."""
    alarm = run(record(histories.small(), 70 * MIB))["alarm"]

    assert alarm.startswith("Out of memory in evaluation: logits lm_head asks for 40.0 MiB while 30.0 MiB are allocated")
