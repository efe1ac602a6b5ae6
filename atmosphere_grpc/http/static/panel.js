// Puts the page together: what is looked at, what is shown, what the buttons and keys do.

import { Cards } from "/static/cards.js";
import { by, enable, say, show, usable } from "/static/dom.js";
import { intentForm } from "/static/intent.js";
import { keyEntry } from "/static/key.js";
import { notice, unnotice } from "/static/notice.js";
import { Runs } from "/static/runs.js";
import { Server } from "/static/server.js";

const server = new Server();
const runs = new Runs();
const cards = new Cards({ execute: (id) => execute([id]), stop: (id) => runs.stop(id), selected: update });
const letIn = keyEntry(() => server.lookAnew());
const stopIntent = intentForm();
let lastUsed = "";

/** The options that are set; null where one makes no sense, which the browser then says. */
function options() {
  const fields = { max_tokens: by("max-tokens"), temperature: by("temperature"), timeoutS: by("timeout") };
  const set = {};
  for (const [name, field] of Object.entries(fields)) {
    if (!field.checkValidity()) {
      field.closest("details").open = true;
      field.reportValidity();
      return null;
    }
    if (field.value !== "") set[name] = field.valueAsNumber;
  }
  return set;
}

function execute(ids) {
  const prompt = by("prompt").value;
  if (!prompt.trim()) {
    say(by("run-note"), "Write a prompt first.");
    by("prompt").focus();
    return;
  }
  const set = options();
  if (!set || !ids.length) return;
  say(by("run-note"), "");
  const answers = ids.map((integration) =>
    runs.start({ integration, model: cards.get(integration)?.model ?? "", prompt, options: set }),
  );
  if (ids.length === 1) [lastUsed] = ids;
  // On a narrow screen the answer would be out of sight.
  answers[0].node.scrollIntoView({ block: "nearest" });
  update();
}

/** Where the keyboard executes: where one executed last, else the preferred one. */
function target() {
  const { connected } = cards;
  return connected.includes(lastUsed) ? lastUsed : connected[0];
}

/** Shows what can be done now. */
function update() {
  const { connected, selected } = cards;
  enable(by("run-all"), connected.length > 0);
  enable(by("run-compared"), selected.length > 0);
  say(by("run-compared"), selected.length ? `Compare selected (${selected.length})` : "Compare selected");
  const stop = by("stop-all");
  if (!runs.anyRunning && document.activeElement === stop) by("prompt").focus();
  show(stop, runs.anyRunning);
  say(by("prompt-target"), target() ?? "the first connected integration");
  cards.ready(server, runs);
}

function live(state, word) {
  by("live").dataset.state = state;
  say(by("live-word"), word);
}

server.addEventListener("integrations", () => {
  show(by("lost"), false);
  unnotice();
  letIn();
  cards.show(server, runs);
  const up = cards.connected.length;
  const all = server.integrations.length;
  live(up ? "good" : "bad", `${up} of ${all} ${all === 1 ? "integration" : "integrations"} connected`);
  update();
});
server.addEventListener("models", () => cards.offer(server));
server.addEventListener("failed", () => {
  show(by("lost"), false);
  const { denied, message } = server.failure;
  if (!denied) notice(`The integrations cannot be listed: ${message}`, false);
  live("bad", denied ? "Another API key is needed" : "The server refuses");
});
server.addEventListener("lost", () => {
  unnotice();
  show(by("lost"), true);
  tellNext();
  live("bad", "Server not reachable");
  cards.show(server, runs);
  update();
});
function tellNext() {
  if (by("lost").hidden) return;
  const left = Math.ceil((server.nextAt - performance.now()) / 1000);
  say(by("lost-next"), left > 0 ? `Trying again in ${left} s.` : "Trying again …");
}
setInterval(tellNext, 250);

runs.addEventListener("change", () => {
  // A run may have loaded its model.
  if (!runs.anyRunning) server.modelsMayHaveChanged();
  update();
});

by("test-form").addEventListener("submit", (event) => event.preventDefault());
by("lost-now").addEventListener("click", () => server.lookAnew());
by("run-all").addEventListener("click", () => usable(by("run-all")) && execute(cards.connected));
by("run-compared").addEventListener("click", () => {
  if (usable(by("run-compared"))) execute(cards.selected);
  else say(by("run-note"), "Tick “Compare” on the integrations to compare first.");
});
by("stop-all").addEventListener("click", () => runs.stopAll());
document.addEventListener("keydown", (event) => {
  // While a word is composed, these keys belong to the input method.
  if (event.isComposing) return;
  const asks = event.key === "Enter" && (event.ctrlKey || event.metaKey || event.target.localName === "button");
  if (event.repeat && asks) {
    // A key that is held down asks once: what it asked for may be a button to stop it by now.
    event.preventDefault();
    return;
  }
  if (event.key === "Escape") {
    runs.stopAll();
    stopIntent();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (event.target.closest?.("#intent-form")) by("intent-form").requestSubmit();
    else if (target()) execute([target()]);
    else say(by("run-note"), "No integration is connected.");
  }
});
// A browser may keep a page that is left, and what it loads, for whoever comes back to it.
addEventListener("pagehide", () => {
  runs.stopAll();
  stopIntent();
});

update();
server.look();
