// Shows failures and attempts: the parts that streamed answers and executed intents have in common.

import { el } from "/static/dom.js";
import { sentence, time } from "/static/words.js";

/** A failure in plain words, what to do, and what to ask about it by. */
export function failureParts(error) {
  const about = [error.reason, error.status ? `HTTP ${error.status}` : ""].filter(Boolean);
  const parts = [el("p", { class: "message" }, sentence(error.message))];
  if (error.retryMs !== null && error.retryMs !== undefined) parts.push(countdown(error.retryMs));
  if (about.length) parts.push(el("p", { class: "note code" }, about.join(" · ")));
  if (error.requestId) parts.push(requestLine(error.requestId));
  if (error.attempts) parts.push(triedList(error.attempts.split("; ")));
  return parts;
}

/** What was tried in vain, as an error tells it: a line each. */
function triedList(tried) {
  const lines = tried.map((line) => el("li", {}, line));
  return el("details", {}, el("summary", {}, attemptsTitle(tried)), el("ol", { class: "tried" }, ...lines));
}

/** By which id the server's log knows a call. */
export function requestLine(id) {
  return el("p", { class: "note" }, "Request ", el("code", {}, id));
}

/** What was tried, in order. */
export function attemptsTable(attempts) {
  const rows = attempts.map((item, i) =>
    el(
      "tr",
      {},
      el("td", {}, String(i + 1)),
      el("td", {}, item.endpoint || "–"),
      el("td", {}, result(item)),
      el("td", { class: "figure" }, time(item.latency_ms ?? 0)),
      el("td", { class: "figure" }, item.time_to_first_token_ms ? time(item.time_to_first_token_ms) : "–"),
      el("td", {}, item.integration_id ?? ""),
      el("td", {}, item.model || "–"),
    ),
  );
  const names = ["", "Endpoint", "Result", "Took", "First token", "Integration", "Model"];
  const head = names.map((name) => el("th", { scope: "col" }, name || el("span", { class: "unseen" }, "Number")));
  // It is wider than a narrow column, and then scrolls by itself, by keyboard as well.
  return el(
    "div",
    { class: "scrolls", tabindex: "0", role: "region", "aria-label": "Attempts" },
    el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows)),
  );
}

/** How many there were, in words. */
export function attemptsTitle(attempts) {
  return attempts.length === 1 ? "1 attempt" : `${attempts.length} attempts`;
}

function result({ status_code: status, reason, prompt_truncated: cut }) {
  if (!status) return cut ? "answered, but the prompt was cut" : "answered";
  return reason || `failed (${status})`;
}

/** Counts down until a retry makes sense; it ends with its place in the page. */
function countdown(ms) {
  const until = performance.now() + ms;
  const line = el("p", { class: "retry" });
  const tell = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    line.textContent = left > 0 ? `Can be tried again in ${left} s.` : "Can be tried again now.";
    return left > 0;
  };
  const ticking = setInterval(() => (line.isConnected && tell()) || clearInterval(ticking), 250);
  tell();
  return line;
}
