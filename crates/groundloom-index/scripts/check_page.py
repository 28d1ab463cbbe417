"""Uses the search page in Chromium, by keyboard and by mouse, and fails at the first thing that is not as it should be.

    pip install playwright && apt-get install chromium
    groundloom run pipelines/retrieval.yaml
    python crates/groundloom-index/scripts/check_page.py target/debug/groundloom out/index examples/photos
"""

import json
import os
import signal
import subprocess
import sys

from playwright.sync_api import expect, sync_playwright

binary, index, photos = sys.argv[1:4]
picture = os.path.join(photos, "chelsea.png")


def serve(**more):
    process = subprocess.Popen([binary, "index", "serve", index, "--port", "0"], stdout=subprocess.PIPE, text=True, env={**os.environ, **more})
    return process, json.loads(process.stdout.readline())["url"]


def stop(process):
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0, "a graceful end is a success"


with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"])
    process, url = serve()
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.set_default_timeout(60_000)
    page.goto(url)
    expect(page.locator("#about")).to_contain_text("rows", timeout=60_000)
    hits = page.locator("#hits > li")

    # By keyboard alone: the text field has the focus, Enter searches, arrows walk through the results, Enter asks for rows like one.
    page.keyboard.type("a cat")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("10 results", timeout=60_000)
    expect(hits.first).to_contain_text("chelsea.png")
    expect(hits.first.locator("img")).to_be_visible(timeout=60_000)
    assert hits.first.locator("img").evaluate("i => i.naturalWidth") > 0, "the picture is shown"
    page.keyboard.press("ArrowDown")
    expect(hits.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(hits.nth(1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(hits.first.locator(".score")).to_have_text("1.0000", timeout=60_000)
    page.keyboard.press("/")
    page.locator("#hits > li").first.focus()
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()

    # A condition, a wrong condition, nothing at all.
    page.fill("#condition", "width > 1000")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("that match", timeout=60_000)
    page.fill("#condition", "widht > 1000")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Did you mean 'width'", timeout=60_000)
    expect(page.locator("#status")).to_have_class("wrong")
    problems.clear()  # The browser reports the answer 422 as an error of the page.
    page.fill("#condition", "")
    page.fill("#text", "")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Type a text")

    # A picture from a file, and one that is dropped.
    page.set_input_files("#file", picture)
    expect(hits.first).to_contain_text("chelsea.png", timeout=60_000)
    expect(page.locator("#chosen")).to_be_visible()
    with open(os.path.join(photos, "rocket.jpg"), "rb") as file:
        data = list(file.read())
    transfer = page.evaluate_handle(
        "data => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(data)], 'r.jpg', {type: 'image/jpeg'})); return t; }", data
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(hits.first).to_contain_text("rocket.jpg", timeout=60_000)
    assert not problems, problems
    stop(process)

    # With a token the page asks for it.
    process, url = serve(GROUNDLOOM_INDEX_TOKEN="s3cret")
    page = browser.new_page()
    page.goto(url)
    expect(page.locator("#token")).to_be_visible(timeout=60_000)
    page.fill("#token", "s3cret")
    page.keyboard.press("Tab")
    expect(page.locator("#about")).to_contain_text("rows", timeout=60_000)
    page.fill("#text", "a rocket")
    page.keyboard.press("Enter")
    expect(hits := page.locator("#hits > li").first).to_contain_text("rocket.jpg", timeout=60_000)
    stop(process)
    browser.close()
print("the search page works")
