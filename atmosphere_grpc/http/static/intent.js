// Intents: where the router would send one, and what comes of it there.

import { ask, isStop } from "/static/api.js";
import { by, el, enable, facts, show, usable } from "/static/dom.js";
import { attemptsTable, attemptsTitle, failureParts } from "/static/told.js";
import { ending, method, sentence, time, usageFacts } from "/static/words.js";

/** How many numbers of a vector are shown. */
const SHOWN = 8;

/** Has the form of intents work. Returns what stops the call under way. */
export function intentForm() {
  const place = by("intent-told");
  let abort = null;

  async function run(path, wait, tell) {
    const intent = by("intent").value.trim();
    if (abort) return;
    abort = new AbortController();
    busy(true);
    place.replaceChildren(el("p", { class: "note" }, wait));
    try {
      place.replaceChildren(...tell(await ask(path, { body: { intent }, signal: abort.signal })));
    } catch (error) {
      const parts = isStop(error)
        ? [el("p", { class: "note" }, "Stopped.")]
        : [el("div", { class: "failure" }, ...failureParts(error))];
      place.replaceChildren(...parts);
    } finally {
      abort = null;
      busy(false);
    }
  }

  function busy(on) {
    enable(by("intent-route"), !on);
    enable(by("intent-run"), !on);
    if (!on && document.activeElement === by("intent-stop")) by("intent-run").focus();
    show(by("intent-stop"), on);
  }

  const stop = () => abort?.abort();
  by("intent-route").addEventListener("click", (event) => {
    if (usable(event.currentTarget)) run("/v1/route", "Asks the router …", (said) => routeParts(said.route));
  });
  by("intent-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (usable(by("intent-run"))) run("/v1/execute", "Executes …", executedParts);
  });
  by("intent-stop").addEventListener("click", stop);
  return stop;
}

/** A decision: where an intent goes, and why. */
function routeParts(route) {
  const list = el("dl", { class: "figures" });
  facts(list, [
    ["Route", route.route || "none"],
    ["Decided by", method(route.method)],
    ["Capability", route.capability],
    ["Integration", route.integration_id],
    ["Model", route.model],
    ["Score", route.score ? `${score(route.score)} (${score(route.threshold)} needed)` : ""],
    ["Runner-up", route.runner_up ? `${route.runner_up} (${score(route.runner_up_score)})` : ""],
  ]);
  return [el("p", { class: "explanation" }, sentence(route.explanation)), list];
}

/** An execution, with the fields that the original's answer has. */
function executedParts(said) {
  const { data, route, attempts } = said;
  const latency = said.execution_time_ms;
  const list = el("dl", { class: "figures" });
  facts(list, [
    ["Success", said.success ? "yes" : "no"],
    ["Execution time", time(latency)],
    ["Capability", said.capability],
    ["Integration", data.integration_id],
    ["Model used", data.model],
    ["Node", said.node_id],
    ["Finish", data.message ? ending(data.finish_reason) : ""],
    ...usageFacts(data.usage, latency, 0),
  ]);
  return [
    ...resultParts(data),
    list,
    el("details", { open: "" }, el("summary", {}, "Route"), ...routeParts(route)),
    el("details", {}, el("summary", {}, attemptsTitle(attempts)), attemptsTable(attempts)),
    el("details", {}, el("summary", {}, "The answer as JSON"), scrolling(JSON.stringify(said, null, 2))),
  ];
}

function resultParts(data) {
  if (data.message) return [el("div", { class: "text content" }, data.message.content)];
  const lines = [
    ...data.embeddings.map(({ values }) => {
      const some = values.slice(0, SHOWN).map((value) => value.toFixed(4)).join(", ");
      return `A vector of ${values.length} numbers: ${some}${values.length > SHOWN ? ", …" : ""}`;
    }),
    ...data.classifications.map(({ label, score: sure }) => `${label} (${score(sure)})`),
    ...data.anomalies.map(
      ({ index, score: sure, is_anomaly: odd }) => `Row ${index}: ${odd ? "anomalous" : "usual"} (${score(sure)})`,
    ),
  ];
  return [el("div", { class: "text content" }, lines.join("\n"))];
}

function scrolling(text) {
  const region = { class: "scrolls", tabindex: "0", role: "region", "aria-label": "The answer as JSON" };
  return el("pre", region, text);
}

const score = (value) => value.toFixed(2);
