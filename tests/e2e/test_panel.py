"""The panel in a real Chromium, over the installed server: on the embedded model and on fakes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from tests.e2e import browser as browsers
from tests.e2e.browser import NARROW, WIDE, Watch, faint, nameless, screenshot, too_wide
from tests.e2e.processes import COMMAND, Serving, run, serving
from tests.fakes import (
    FakeServer,
    OpenAI,
    Pause,
    Reply,
    Send,
    Stall,
    Step,
    Until,
    chunk,
    event,
    text,
    usage,
)
from tests.fakes.sockets import refusing

pytestmark = [
    pytest.mark.xdist_group("panel"),
    pytest.mark.skipif(
        browsers.CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"
    ),
]

CHAT_PATH = "/v1/chat/completions"
#: How long it may take from closing a tab until the backend's connection closes, in seconds. It is
#: the middle one of three that counts: a machine that runs other tests as well may stumble once.
CLOSE_S = 0.2
#: The same from a click, which on a busy machine arrives late.
STOP_S = 0.5
#: How long what a test waits for may take, in milliseconds: far above what it does.
PATIENCE_MS = 20_000
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"

Open = Callable[..., Awaitable[tuple[Page, Watch]]]
Serve = Callable[..., Awaitable[Serving]]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    async with browsers.chromium() as started:
        yield started


@pytest.fixture
async def opened(browser: Browser) -> AsyncIterator[Open]:
    """Opens the panel of a server; whatever a page complained of fails the test."""
    watches: list[Watch] = []
    async with contextlib.AsyncExitStack() as contexts:

        async def open_page(
            server: Serving, *, width: int = WIDE, scheme: Any = "light", clock: bool = False
        ) -> tuple[Page, Watch]:
            context = await browser.new_context(
                viewport={"width": width, "height": browsers.HEIGHT}, color_scheme=scheme
            )
            contexts.push_async_callback(context.close)
            page = await context.new_page()
            if clock:  # it goes on as ever, until a test moves it
                await page.clock.install()
            origin = f"http://{server.http}"
            watches.append(Watch(page, origin))
            await page.goto(origin)
            return page, watches[-1]

        yield open_page
        for watch in watches:
            watch.check()


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Serves over backends, by their ids and addresses; fakes answer meanwhile."""
    with contextlib.ExitStack() as processes:

        async def start(*, more: str = "", **urls: str) -> Serving:
            lines = [
                f'  - {{id: {name}, kind: {kind_at(url)}, base_urls: ["{url}"]}}'
                for name, url in urls.items()
            ]
            config = tmp_path / "atmosphere.yaml"
            config.write_text("\n".join(["probe_interval: 500ms", more, "integrations:", *lines]))
            starting = serving(tmp_path / "server", "--config", str(config))
            server = await asyncio.to_thread(processes.enter_context, starting)
            assert server.http, server.log
            return server

        yield start


def kind_at(url: str) -> str:
    return "openai" if url.endswith("/v1") else "ollama"


def card(page: Page, integration: str) -> Locator:
    return page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=integration))


def answer(page: Page, integration: str) -> Locator:
    return page.get_by_role("article", name=f"Answer of {integration}")


def figure(place: Locator, term: str) -> Locator:
    """What a figure is, by its name."""
    return place.locator("dl.figures > div", has_text=term).locator("dd")


def execute(page: Page, integration: str) -> Locator:
    return page.get_by_role("button", name=f"Execute on {integration}")


async def ready(page: Page, connected: int, of: int) -> None:
    word = f"{connected} of {of} integration{'' if of == 1 else 's'} connected"
    await expect(page.get_by_text(word)).to_be_visible()


def paced(*words: str, seconds: float = 0.02) -> Reply:
    """An answer that takes its time, as models do."""
    steps: list[bytes | Step] = []
    for word in words:
        steps += [event(text(word)), Pause(seconds)]
    numbers = {"prompt_tokens": 14, "completion_tokens": len(words)}
    numbers["total_tokens"] = sum(numbers.values())
    return Reply.stream(
        *steps, event(chunk(finish="stop")), event(usage(numbers)), b"data: [DONE]\n\n"
    )


HALF = Reply.stream(event(text("One, two, ")), event(text("thr")), Stall())


def chats(fake: FakeServer) -> list[Any]:
    """What was asked, of the chats that came."""
    return [request.json for request in fake.requests if request.path == CHAT_PATH]


async def chat_gone(fake: FakeServer) -> float:
    """Waits until the client of the last chat has gone away; loop time. Probes come between."""
    paths = [request.path for request in fake.requests]
    return await fake.client_gone(len(paths) - 1 - paths[::-1].index(CHAT_PATH))


# --- what it is for ----------------------------------------------------------------------------


async def test_the_whole_flow_on_the_embedded_model(embedded: Serving, opened: Open) -> None:
    page, _ = await opened(embedded)
    await ready(page, 1, 1)
    shown = card(page, "embedded")
    await expect(shown).to_contain_text("Connected")
    await expect(shown).to_contain_text("smollm2-135m-instruct")
    await expect(shown).to_contain_text("127.0.0.1:")
    models = page.get_by_label("Model on embedded")
    await expect(models.locator("option")).to_have_count(2)  # the other model only embeds
    await expect(models).not_to_contain_text("minilm")
    await models.select_option("smollm2-135m-instruct")
    await expect(page.get_by_label("Prompt")).to_have_value("Hello! Can you count to 5?")
    await page.get_by_text("Options").click()
    await page.get_by_label("Maximum tokens").fill("24")
    await page.get_by_label("Temperature").fill("0")
    await execute(page, "embedded").click()

    told = answer(page, "embedded")
    await expect(told.get_by_role("status")).to_contain_text("Done")
    await expect(told.locator(".content")).to_have_text(re.compile(r"\w{2,}"))
    for term in ("Latency", "First token"):
        await expect(figure(told, term)).to_have_text(re.compile(r"^[\d.]+ (ms|s)$"))
    await expect(figure(told, "Model used")).to_have_text("smollm2-135m-instruct")
    await expect(figure(told, "Completion tokens")).to_have_text(re.compile(r"^\d+$"))
    await expect(figure(told, "Speed")).to_contain_text("tokens/s")
    await told.get_by_text("1 attempt").click()
    row = told.get_by_role("row").nth(1)
    await expect(row).to_contain_text("answered")
    await expect(row).to_contain_text("embedded")
    await expect(told).to_contain_text(re.compile(r"Request [0-9a-f]{32}"))
    await screenshot(page, "embedded")


async def test_an_intent_is_routed_and_executed(embedded: Serving, opened: Open) -> None:
    page, _ = await opened(embedded)
    told = page.locator("#intent-told")
    await page.get_by_role("textbox", name="Intent").fill("What is 2+2?")
    await page.get_by_role("button", name="Show the route").click()
    await expect(figure(told, "Capability")).to_have_text("chat")
    await expect(figure(told, "Integration")).to_have_text("embedded")
    await expect(told).to_contain_text("integration embedded is the first usable one")
    await page.get_by_role("button", name="Execute by intent").click()
    await expect(figure(told, "Success")).to_have_text("yes")
    await expect(figure(told, "Execution time")).to_have_text(re.compile(r"^[\d.]+ (ms|s)$"))
    await expect(figure(told, "Node")).to_contain_text("atmosphere-node-")
    await expect(figure(told, "Completion tokens")).to_have_text(re.compile(r"^\d+$"))
    await expect(told.locator(".content")).to_have_text(re.compile(r"\w"))
    await told.get_by_text("The answer as JSON").click()
    said = json.loads(await told.locator("pre").inner_text())
    assert set(said) >= {"success", "data", "execution_time_ms", "node_id", "capability"}
    await screenshot(page, "intent")


async def test_two_models_are_compared(embedded: Serving, opened: Open, serve: Serve) -> None:
    """With real ones: this server's own, and that of another server behind it."""
    with refusing() as down:
        backends = {"edge-2": f"http://{embedded.http}/v1", "ollama": f"http://{down}"}
        server = await serve(more="embedded: {enabled: true}", **backends)
        page, _ = await opened(server)
        await ready(page, 2, 3)
        await expect(card(page, "ollama")).to_contain_text("is Ollama running? (ollama serve)")
        await page.get_by_label("Prompt").fill("Name three colours of the rainbow.")
        await page.get_by_text("Options").click()
        await page.get_by_label("Maximum tokens").fill("96")
        await page.get_by_label("Temperature").fill("0.2")
        for name in ("edge-2", "embedded"):
            await page.get_by_label(f"Compare {name}").check()
        await page.get_by_role("button", name="Compare selected (2)").click()
        tokens = re.compile(r"^\d+$")
        for name in ("edge-2", "embedded"):
            await expect(answer(page, name).get_by_role("status")).to_contain_text("Done")
            await expect(figure(answer(page, name), "Completion tokens")).to_have_text(tokens)
        await expect(page.get_by_role("article")).to_have_count(2)
        await page.get_by_label("Prompt").focus()
        await screenshot(page, "comparison")


async def test_several_answer_side_by_side(serve: Serve, opened: Open) -> None:
    async with FakeServer() as first, FakeServer() as second, FakeServer() as third:
        first.always(CHAT_PATH, paced("One, ", "two, ", "three."))
        second.always(CHAT_PATH, HALF)
        third.always(CHAT_PATH, HALF)
        server = await serve(one=first.base_url, two=second.base_url, three=third.base_url)
        page, _ = await opened(server)
        await ready(page, 3, 3)
        compare = page.get_by_role("button", name="Compare selected")
        await expect(compare).to_be_disabled()
        for name in ("one", "two"):
            await page.get_by_label(f"Compare {name}").check()
        await compare.click()
        await expect(answer(page, "one")).to_contain_text("Done: the answer is complete")
        await expect(answer(page, "one")).to_contain_text("One, two, three.")
        await expect(answer(page, "two")).to_contain_text("One, two, thr")
        await expect(answer(page, "three")).to_have_count(0)
        left, right = [await answer(page, name).bounding_box() for name in ("one", "two")]
        assert left is not None
        assert right is not None
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] < right["x"]

        await answer(page, "two").get_by_role("button", name="Stop two").click()
        await chat_gone(second)
        await expect(answer(page, "two").get_by_role("status")).to_contain_text("Stopped")

        await page.get_by_role("button", name="Execute on all connected").click()
        for name in ("two", "three"):
            await expect(answer(page, name)).to_contain_text("Answering")
        await page.get_by_role("button", name="Stop all").click()
        for fake in (second, third):
            await chat_gone(fake)
        await expect(page.get_by_role("button", name="Stop all")).to_be_hidden()
        assert [len(chats(fake)) for fake in (first, second, third)] == [2, 2, 1]


async def test_the_options_and_the_model_reach_the_backend(serve: Serve, opened: Open) -> None:
    async with FakeServer(OpenAI(models=["large", "small"])) as fake:
        server = await serve(one=fake.base_url)
        page, _ = await opened(server)
        await ready(page, 1, 1)
        await page.get_by_label("Model on one").select_option("small")
        await page.get_by_text("Options").click()
        await page.get_by_label("Maximum tokens").fill("7")
        await page.get_by_label("Temperature").fill("0.5")
        await page.get_by_label("Timeout").fill("0")
        await execute(page, "one").click()
        await expect(page.get_by_label("Timeout")).to_be_focused()  # the browser says why
        await page.get_by_label("Timeout").fill("2.5")
        await page.get_by_label("Prompt").fill("Count.")
        await execute(page, "one").click()
        await expect(answer(page, "one").get_by_role("status")).to_contain_text("Done")
        (body,) = chats(fake)
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("small", 7, 0.5)
        assert body["messages"] == [{"role": "user", "content": "Count."}]


async def test_reasoning_is_shown_apart(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        thought = event(chunk({"reasoning_content": "Hm, five."}))
        parts = (thought, event(text("1 to 5")), event(chunk(finish="length")))
        fake.always(CHAT_PATH, Reply.stream(*parts, b"data: [DONE]\n\n"))
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        await execute(page, "one").click()
        told = answer(page, "one")
        await expect(told.locator(".content")).to_have_text("1 to 5")
        await told.get_by_text("Reasoning", exact=True).click()
        await expect(told.locator(".reasoning .text")).to_have_text("Hm, five.")
        await expect(figure(told, "Finish")).to_have_text("cut off at the token limit")
        await expect(figure(told, "Usage")).to_have_text("not told by the backend")


async def test_what_is_being_written_stays_in_sight(serve: Serve, opened: Open) -> None:
    more = [asyncio.Event(), asyncio.Event()]
    async with FakeServer() as fake:
        lines = "a line\n" * 60
        thought = event(chunk({"reasoning_content": lines}))
        parts = (thought, Until(more[0]), thought, event(text(lines)), Until(more[1]))
        fake.always(CHAT_PATH, Reply.stream(*parts, event(text("the end")), Stall()))
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        await execute(page, "one").click()
        told = answer(page, "one")
        await told.get_by_text("Reasoning", exact=True).last.click()
        thoughts, content = told.locator(".reasoning .text"), told.locator(".content")
        below = "box => box.scrollHeight - box.scrollTop - box.clientHeight"
        await expect(thoughts).to_be_visible()
        await page.wait_for_function(f"({below})(document.querySelector('.reasoning .text')) < 2")
        more[0].set()
        await expect(content).to_contain_text("a line")
        assert [await box.evaluate(below) < 2 for box in (thoughts, content)] == [True, True]
        await content.evaluate("box => box.scrollTop = 40")  # who reads what came is left there
        more[1].set()
        await expect(content).to_contain_text("the end")
        assert await content.evaluate("box => box.scrollTop") == 40


async def test_an_answer_without_text_says_so(serve: Serve, opened: Open) -> None:
    async with FakeServer(OpenAI(tokens=())) as fake:
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        await execute(page, "one").click()
        said = "Done: the answer is complete, and has no text"
        await expect(answer(page, "one").get_by_role("status")).to_have_text(said)
        await expect(answer(page, "one").locator(".content")).to_be_hidden()


async def test_usage_that_was_estimated_says_so(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        numbers = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
        parts = (event(text("Hi")), event(chunk(finish="stop")), event(usage(numbers)))
        fake.script(CHAT_PATH, Reply.stream(*parts, b"data: [DONE]\n\n"))
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        told = answer(page, "one")
        await execute(page, "one").click()
        await expect(figure(told, "Completion tokens")).to_have_text("1")
        await expect(figure(told, "Usage")).to_have_text("estimated")
        await execute(page, "one").click()
        await expect(figure(told, "Completion tokens")).to_have_text("3")
        await expect(figure(told, "Usage")).to_have_count(0)


# --- stopping ----------------------------------------------------------------------------------


async def half_way(page: Page) -> None:
    await ready(page, 1, 1)
    await execute(page, "one").click()
    await expect(answer(page, "one").locator(".content")).to_have_text("One, two, thr")


async def test_a_stream_is_stopped_half_way(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, HALF)
        page, _ = await opened(await serve(one=fake.base_url))
        await half_way(page)
        told = answer(page, "one")
        await screenshot(page, "answering")
        stop = told.get_by_role("button", name="Stop one")
        since = await clicked_at(stop)
        assert await chat_gone(fake) - since <= STOP_S
        await expect(told.get_by_role("status")).to_have_text("Stopped: the answer is not complete")
        await expect(told.locator(".content")).to_have_text("One, two, thr")
        await expect(figure(told, "Latency")).to_have_text(re.compile("s$"))
        await expect(told.get_by_role("button", name="Run again")).to_be_focused()
        await screenshot(page, "stopped")
        fake.forget()
        await told.get_by_role("button", name="Run again").click()
        await expect(answer(page, "one").locator(".content")).to_have_text("Hello world")
        await expect(page.get_by_role("article")).to_have_count(1)
        await page.get_by_role("button", name="Remove the answer of one").click()
        await expect(page.get_by_role("article")).to_have_count(0)


async def clicked_at(button: Locator) -> float:
    """Clicks a button by its handler; the loop's time before that, without what finds it."""
    handle = await button.element_handle()
    await button.focus()
    since = asyncio.get_running_loop().time()
    await handle.evaluate("button => button.click()")
    return since


async def test_a_closed_tab_stops_the_backend_within_200_ms(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, HALF)
        server = await serve(one=fake.base_url)
        took = []
        for _ in range(3):
            page, _ = await opened(server)
            await half_way(page)
            since = asyncio.get_running_loop().time()
            await page.close()
            took.append(await chat_gone(fake) - since)
        assert statistics.median(took) <= CLOSE_S, took


async def test_a_page_that_is_left_stops_the_backend(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, HALF)
        page, _ = await opened(await serve(one=fake.base_url))
        await half_way(page)
        await page.reload()
        await chat_gone(fake)
        await half_way(page)
        await expect(page.get_by_role("article")).to_have_count(1)
        await page.goto(f"{page.url}health")  # the browser keeps the page, for who comes back
        await chat_gone(fake)


async def test_tabs_share_the_connections_to_a_server(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, HALF)
        names = ("a", "b", "c", "d")
        first, _ = await opened(await serve(**dict.fromkeys(names, fake.base_url)))
        second = await first.context.new_page()
        await second.goto(first.url)
        for page in (first, second):
            await ready(page, 4, 4)
            await page.get_by_role("button", name="Execute on all connected").click()
            await expect(page.get_by_role("article")).to_have_count(4)
            await expect(first.get_by_role("article").filter(has_text="Answering")).to_have_count(4)
        async with second.expect_response("**/v1/integrations"):  # it still sees the server
            pass
        waiting = second.get_by_role("article").filter(has_text="Waits for its turn")
        await expect(waiting).to_have_count(4)
        assert len(chats(fake)) == 4
        await waiting.get_by_role("button", name="Stop d").click()
        await first.keyboard.press("Escape")
        await expect(second.get_by_role("article").filter(has_text="Answering")).to_have_count(3)
        assert len(chats(fake)) == 7


async def test_a_double_click_or_a_key_held_down_executes_once(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, HALF)
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        status = answer(page, "one").get_by_role("status")
        # There, a button to stop it comes in the place of the one that executes.
        await execute(page, "one").dblclick(position={"x": 15, "y": 15})
        await expect(status).to_have_text("Answering")
        for key in ("Enter", "Control+Enter"):
            await page.keyboard.press("Escape")
            await expect(execute(page, "one")).to_be_focused()
            *held, enter = key.split("+")
            for name in (*held, enter, enter, enter, enter):
                await page.keyboard.down(name)
            for name in (enter, *held):
                await page.keyboard.up(name)
            await expect(status).to_have_text("Answering")
        assert len(chats(fake)) == 3


async def test_more_streams_than_a_browser_has_connections(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, HALF)
        names = [f"n{i}" for i in range(7)]
        server = await serve(**dict.fromkeys(names, fake.base_url))
        page, _ = await opened(server)
        await ready(page, 7, 7)
        await page.get_by_role("button", name="Execute on all connected").click()
        for name in names[:4]:
            await expect(answer(page, name)).to_contain_text("Answering")
        for name in names[4:]:
            await expect(answer(page, name)).to_contain_text("Waits for its turn")
        async with page.expect_response("**/v1/integrations"):  # the page still sees the server
            pass
        await answer(page, "n5").get_by_role("button", name="Stop n5").click()
        await answer(page, "n0").get_by_role("button", name="Stop n0").click()
        await expect(answer(page, "n4")).to_contain_text("Answering")
        await expect(answer(page, "n6")).to_contain_text("Waits for its turn")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("article").filter(has_text="Stopped")).to_have_count(7)
        assert len(chats(fake)) == 5
        await execute(page, "n6").click()  # all places are free again
        await expect(answer(page, "n6")).to_contain_text("Answering")


# --- what goes wrong ---------------------------------------------------------------------------


async def test_a_backend_that_is_down_says_why_and_comes_up_by_itself(
    serve: Serve, opened: Open
) -> None:
    with refusing() as address:
        server = await serve(one=f"http://{address}/v1")
        page, _ = await opened(server)
        shown = card(page, "one")
        await ready(page, 0, 1)
        await expect(shown).to_contain_text("Not connected")
        await expect(shown).to_contain_text(f"connection refused at {address} – is it running?")
        await expect(shown).to_contain_text("Cannot be executed: it is not connected.")
        await expect(execute(page, "one")).to_be_disabled()
        await execute(page, "one").focus()  # whoever hears the page can still learn why
        await expect(execute(page, "one")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("article")).to_have_count(0)
        await page.get_by_label("Prompt").press("Control+Enter")
        await expect(page.get_by_text("No integration is connected.")).to_be_visible()
        await screenshot(page, "down")
    async with FakeServer(port=int(address.rpartition(":")[2])):
        await ready(page, 1, 1)
        await expect(shown).not_to_contain_text("refused")
        await expect(page.locator("#news")).to_have_text("one: Connected")
        await execute(page, "one").click()
        await expect(answer(page, "one").locator(".content")).to_have_text("Hello world")


async def test_a_failure_is_told_in_plain_words(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        busy = Reply.json({"error": {"message": "no"}}, 429, headers={"Retry-After": "30"})
        fake.always(CHAT_PATH, busy)
        page, watch = await opened(await serve(one=fake.base_url))
        watch.allow("status of 429")
        await ready(page, 1, 1)
        await execute(page, "one").click()
        told = answer(page, "one")
        await expect(told.get_by_role("status")).to_have_text("Failed")
        await expect(told.locator(".content")).to_be_hidden()
        failure = told.get_by_role("alert")
        await expect(failure).to_contain_text('Integration "one"')
        await expect(failure).to_contain_text("BACKEND_BUSY · HTTP 429")
        await expect(failure).to_contain_text(re.compile(r"Can be tried again in \d+ s\."))
        await expect(failure).to_contain_text(re.compile(r"Request [0-9a-f]{32}"))
        await failure.get_by_text("1 attempt").click()
        await expect(failure.get_by_role("listitem")).to_contain_text("one@127.0.0.1")
        await screenshot(page, "failure")


async def test_a_stream_that_breaks_off_keeps_what_came(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, Reply.stream(event(text("One, two, "))))
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        await execute(page, "one").click()
        told = answer(page, "one")
        await expect(told.get_by_role("status")).to_have_text("Failed: the answer is not complete")
        await expect(told.locator(".content")).to_have_text("One, two, ")
        await expect(told.get_by_role("alert")).to_contain_text("STREAM_TRUNCATED")


async def test_a_server_that_is_gone_is_told_and_found_again(
    serve: Serve, opened: Open, tmp_path: Path
) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, HALF)
        server = await serve(one=fake.base_url)
        page, watch = await opened(server)
        watch.allow("net::ERR_")
        await half_way(page)
        server.process.kill()
        await expect(answer(page, "one").get_by_role("alert")).to_contain_text("broke off")
        await expect(answer(page, "one").locator(".content")).to_have_text("One, two, thr")
        await expect(page.get_by_text("Server not reachable.")).to_be_visible()
        await expect(page.get_by_text("Server not reachable. Is it still running?")).to_be_visible()
        await expect(card(page, "one")).to_contain_text("Unknown")
        await expect(execute(page, "one")).to_be_disabled()
        await screenshot(page, "unreachable")
        config = str(tmp_path / "atmosphere.yaml")
        again = serving(tmp_path / "b", "--config", config, ATMOSPHERE_HTTP__LISTEN=server.http)
        with contextlib.ExitStack() as processes:
            await asyncio.to_thread(processes.enter_context, again)
            await expect(page.get_by_text("Server not reachable.")).to_be_hidden()
            await ready(page, 1, 1)
            await expect(execute(page, "one")).to_be_enabled()


async def test_a_key_is_asked_for_and_used(opened: Open, tmp_path: Path) -> None:
    async with FakeServer() as fake:
        folder = tmp_path / "server"
        config = tmp_path / "atmosphere.yaml"
        config.write_text(f'integrations: [{{id: one, base_urls: ["{fake.base_url}"]}}]')
        keys = [
            key_of(folder / "state", "reader", "--allow", "rpc=ListIntegrations"),
            key_of(folder / "state", "all"),
        ]
        with contextlib.ExitStack() as processes:
            starting = serving(folder, "--config", str(config))
            server = await asyncio.to_thread(processes.enter_context, starting)
            page, watch = await opened(server)
            watch.allow("status of 40[13]")
            trouble = page.locator("#trouble")
            field = page.get_by_label("Key or token")
            await expect(trouble).to_have_text("The server asks who calls. Give an API key.")
            await expect(field).to_be_focused()
            await screenshot(page, "key")
            await field.fill("schlüssel")
            await field.press("Enter")
            await expect(trouble).to_contain_text("characters that no key has")
            await field.fill("wrong")
            await field.press("Enter")
            await expect(trouble).to_contain_text("does not accept this API key")

            await field.fill(keys[0])
            await field.press("Enter")
            await ready(page, 1, 1)
            await expect(trouble).to_be_hidden()
            await expect(page.get_by_label("Prompt")).to_be_focused()
            await execute(page, "one").click()
            await expect(trouble).to_contain_text("This caller may not do that")
            await expect(answer(page, "one").get_by_role("alert")).to_contain_text("HTTP 403")
            await expect(field).to_be_focused()

            await field.fill(keys[1])
            await field.press("Enter")
            await expect(trouble).to_be_hidden()
            await execute(page, "one").click()
            await expect(answer(page, "one").locator(".content")).to_have_text("Hello world")
            stored = "[localStorage.length, sessionStorage.length, document.cookie.length]"
            assert await page.evaluate(stored) == [0, 0, 0]


def key_of(state: Path, name: str, *options: str) -> str:
    done = run([COMMAND, "keys", "create", name, *options], ATMOSPHERE_STATE_DIR=str(state))
    assert done.status == 0, done.err
    return done.out.strip()


async def test_looking_does_not_use_up_what_a_caller_may_do(opened: Open, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    config = tmp_path / "atmosphere.yaml"
    config.write_text("integrations: [{id: one, base_urls: ['http://127.0.0.1:1/v1']}]")
    key = key_of(folder / "state", "few", "--limit", "requests=2")
    with contextlib.ExitStack() as processes:
        starting = serving(folder, "--config", str(config))
        server = await asyncio.to_thread(processes.enter_context, starting)
        page, watch = await opened(server)
        watch.allow("status of 4(01|29)")
        await page.get_by_label("Key or token").fill(key)
        await page.get_by_label("Key or token").press("Enter")
        await ready(page, 0, 1)
        await expect(page.locator("#trouble")).to_contain_text("cannot be listed: ")
        await expect(page.locator("#live")).to_have_text("The server refuses")
        await expect(card(page, "one")).to_contain_text("Not connected")  # as it was seen last


async def test_a_proxy_that_says_a_date_is_not_asked_without_a_pause(
    embedded: Serving, opened: Open
) -> None:
    page, watch = await opened(embedded)
    watch.allow("status of 503")
    await ready(page, 1, 1)
    looks = 0

    async def refuse(route: Route) -> None:
        nonlocal looks
        looks += 1
        headers = {"Retry-After": "Wed, 21 Oct 2037 07:28:00 GMT"}
        await route.fulfill(status=503, body="<h1>Busy</h1>", headers=headers)

    await page.route("**/v1/integrations", refuse)
    await expect(page.locator("#live")).to_have_text("Server not reachable")
    await asyncio.sleep(0.5)  # the next look is after a second
    assert looks == 1


async def test_without_javascript_the_page_says_so_first(
    embedded: Serving, browser: Browser
) -> None:
    page = await browser.new_page(java_script_enabled=False)
    await page.goto(f"http://{embedded.http}")
    said = await page.locator("noscript p").bounding_box()
    main = await page.locator("main").bounding_box()
    assert said is not None
    assert main is not None
    assert said["y"] < main["y"]
    await page.context.close()


async def test_hostile_text_stays_text(serve: Serve, opened: Open) -> None:
    async with FakeServer(OpenAI(models=[HOSTILE])) as fake:
        parts = (event(text(HOSTILE, model=HOSTILE)), event(chunk(finish="stop", model=HOSTILE)))
        thought = event(chunk({"reasoning_content": HOSTILE}, model=HOSTILE))
        fake.always(CHAT_PATH, Reply.stream(thought, *parts, b"data: [DONE]\n\n"))
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        await expect(card(page, "one")).to_contain_text(HOSTILE)
        await page.get_by_label("Prompt").fill(HOSTILE)
        await page.get_by_label("Model on one").select_option(HOSTILE)
        await execute(page, "one").click()
        told = answer(page, "one")
        await expect(told.locator(".content")).to_have_text(HOSTILE)
        await expect(figure(told, "Model used")).to_have_text(HOSTILE)
        await page.get_by_role("textbox", name="Intent").fill(HOSTILE)
        await page.get_by_role("button", name="Execute by intent").click()
        await expect(page.locator("#intent-told .content")).to_have_text(HOSTILE)
        assert await page.locator("main :is(img, script)").count() == 0


async def test_a_line_is_written_in_its_own_direction(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        parts = (event(text("\u05d0\u05d1 (a)!\nabc")), event(chunk(finish="stop")))
        fake.always(CHAT_PATH, Reply.stream(*parts, b"data: [DONE]\n\n"))
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        await execute(page, "one").click()
        shown = answer(page, "one").locator(".content")
        await expect(shown).to_contain_text("abc")
        hebrew, latin = [await shown.evaluate(CHARACTER, i) for i in (0, 8)]
        middle = await shown.evaluate("box => box.clientWidth / 2")
        assert latin < middle < hebrew


#: How far a character is from the left end of its box.
CHARACTER = """(box, i) => {
  const range = document.createRange();
  range.setStart(box.firstChild, i);
  range.setEnd(box.firstChild, i + 1);
  return range.getBoundingClientRect().left - box.getBoundingClientRect().left;
}"""


# --- keyboard, looks, size ---------------------------------------------------------------------


async def test_in_the_colours_of_the_system_states_and_buttons_can_be_told_apart(
    serve: Serve, opened: Open
) -> None:
    with refusing() as down:
        page, _ = await opened(await serve(one=f"http://{down}/v1"))
        await page.emulate_media(forced_colors="active")
        await ready(page, 0, 1)
        dot, button = card(page, "one").locator(".dot"), execute(page, "one")
        colour = "(element, name) => getComputedStyle(element)[name]"
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert await dot.evaluate(colour, "backgroundColor") != ground
        shown = page.get_by_role("button", name="Show the route")
        assert await button.evaluate(colour, "color") != await shown.evaluate(colour, "color")


async def test_the_keyboard_is_enough(serve: Serve, opened: Open) -> None:
    async with FakeServer() as first, FakeServer() as second:
        second.always(CHAT_PATH, HALF)
        page, _ = await opened(await serve(one=first.base_url, two=second.base_url))
        await ready(page, 2, 2)
        prompt = page.get_by_label("Prompt")
        await expect(prompt).to_be_focused()
        await page.keyboard.press("Control+Enter")
        await expect(answer(page, "one").locator(".content")).to_have_text("Hello world")
        await page.keyboard.press("Shift+Tab")
        await expect(page.get_by_label("Compare two")).to_be_focused()
        await page.keyboard.press("Space")
        await expect(page.get_by_label("Compare two")).to_be_checked()
        await page.keyboard.press("Shift+Tab")
        await expect(execute(page, "two")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(answer(page, "two").locator(".content")).to_have_text("One, two, thr")
        await expect(card(page, "two").get_by_role("button", name="Stop two")).to_be_focused()
        await page.keyboard.press("Escape")
        await chat_gone(second)
        await expect(answer(page, "two").get_by_role("status")).to_contain_text("Stopped")
        await expect(execute(page, "two")).to_be_focused()
        await page.keyboard.press("Control+Enter")  # where one executed last
        await expect(answer(page, "two")).to_contain_text("Answering")
        await expect(card(page, "two").get_by_role("button", name="Stop two")).to_be_focused()
        assert len(chats(first)) == 1
        # From the end of the page backwards, every control can be reached.
        await page.get_by_role("button", name="Execute by intent").focus()
        reached = set()
        for _ in range(40):
            await page.keyboard.press("Shift+Tab")
            focused = "document.activeElement.id || document.activeElement.className"
            reached.add(await page.evaluate(focused))
        assert reached >= {"intent", "run-compared", "run-all", "prompt", "model-one", "stop"}


async def test_a_look_at_the_server_takes_no_choice_and_no_focus(
    serve: Serve, opened: Open
) -> None:
    async with FakeServer(OpenAI(models=["large", "small"])) as fake:
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        models = page.get_by_label("Model on one")
        await models.select_option("small")
        await page.get_by_label("Compare one").check()
        handle = await models.element_handle()
        await models.focus()
        # What is listed changes, and is looked at again after an answer.
        fake.always("/v1/models", OpenAI(models=["large", "other"]).list_models())
        await page.keyboard.press("Control+Enter")
        await expect(models).to_contain_text("other")
        await expect(models.locator("option")).to_contain_text(
            ["Default", "large", "other", "small – not listed now"]
        )
        await expect(models).to_have_value("small")
        await expect(models).to_be_focused()
        await expect(page.get_by_label("Compare one")).to_be_checked()
        assert await handle.evaluate("element => element.isConnected")


HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_a_page_that_nobody_sees_asks_nothing(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        page, _ = await opened(await serve(one=fake.base_url), clock=True)
        await ready(page, 1, 1)
        async with page.expect_response("**/v1/models*"):  # what follows the first look
            await page.clock.run_for(31_000)
        await page.evaluate(HIDE, True)
        looks: list[str] = []
        page.on("request", lambda request: looks.append(request.url))
        await page.clock.run_for(600_000)
        assert not looks
        async with page.expect_response("**/v1/integrations"):
            await page.evaluate(HIDE, False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read_and_heard(serve: Serve, opened: Open, scheme: str) -> None:
    count = ("Sure! ", "Here ", "we ", "go: ", "1, ", "2, ", "3, ", "4, ", "5.")
    async with FakeServer(OpenAI(models=["qwen3-8b"])) as first, FakeServer() as second:
        first.always(CHAT_PATH, paced(*count))
        second.always(CHAT_PATH, Reply.stream(event(text("1, 2, "))))
        with refusing() as down:
            urls = {"one": first.base_url, "two": second.base_url, "three": f"http://{down}/v1"}
            page, _ = await opened(await serve(**urls), scheme=scheme)
            await ready(page, 2, 3)
            await page.get_by_role("button", name="Execute on all connected").click()
            await expect(answer(page, "one")).to_contain_text("Done")
            await expect(answer(page, "two")).to_contain_text("Failed")
            await answer(page, "one").get_by_text("1 attempt").click()
            await page.get_by_text("Options").click()
            await page.get_by_role("button", name="Show the route").click()
            await expect(page.locator("#intent-told")).to_contain_text("Capability")
            assert not await nameless(page)
            assert not await faint(page)
            await screenshot(page, scheme)
            await page.set_viewport_size({"width": NARROW, "height": browsers.HEIGHT})
            assert await too_wide(page) == 0
            await screenshot(page, f"{scheme}-narrow")


# --- the parser of events ----------------------------------------------------------------------

#: Feeds the parser a text of bytes, cut in two at each place, and byte by byte.
PARSE = """async (bytes) => {
  const { events } = await import("/static/sse.js");
  const parse = async (...pieces) => {
    const body = new ReadableStream({
      start(controller) {
        for (const piece of pieces) controller.enqueue(new Uint8Array(piece));
        controller.close();
      },
    });
    const heard = [];
    for await (const data of events(body)) heard.push(data);
    return JSON.stringify(heard);
  };
  const all = new Set([await parse(...bytes.map((byte) => [byte]))]);
  for (let i = 0; i <= bytes.length; i += 1) {
    all.add(await parse(bytes.slice(0, i), bytes.slice(i)));
  }
  return [...all].map((text) => JSON.parse(text));
}"""


@pytest.mark.parametrize("eol", ["\n", "\r\n", "\r"])
async def test_events_are_the_same_wherever_they_are_cut(
    embedded: Serving, opened: Open, eol: str
) -> None:
    page, _ = await opened(embedded)
    lines = [": a comment", "data: für 👋🏽", "", "event: x", "data:1", "data: 2", "data", "", ""]
    sent = "\ufeff" + eol.join([*lines, "data: [DONE]", "", "data: no end"])
    assert await page.evaluate(PARSE, list(sent.encode())) == [["für 👋🏽", "1\n2\n", "[DONE]"]]


async def test_an_answer_that_drips_is_whole(serve: Serve, opened: Open) -> None:
    async with FakeServer() as fake:
        word = "Grüße, 世界 👋🏽"
        whole = Reply.stream(
            Send(event(text(word)), size=1), event(chunk(finish="stop")), b"data: [DONE]\n\n"
        )
        fake.always(CHAT_PATH, whole)
        page, _ = await opened(await serve(one=fake.base_url))
        await ready(page, 1, 1)
        await execute(page, "one").click()
        await expect(answer(page, "one").locator(".content")).to_have_text(word)
