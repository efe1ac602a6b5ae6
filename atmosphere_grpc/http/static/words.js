// How figures, states and reasons are said in words.

const NUMBERS = new Intl.NumberFormat("en");

/** A time: `< 1 ms`, `3.2 ms`, `245 ms`, `1.25 s`, `2 min 5 s`. */
export function time(ms) {
  if (ms < 1) return "< 1 ms";
  if (ms < 10) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
}

export const number = (value) => NUMBERS.format(value);

/** What an integration's state is called, and which colour goes with it. */
export const STATES = {
  INTEGRATION_STATE_UP: { word: "Connected", colour: "good" },
  INTEGRATION_STATE_DOWN: { word: "Not connected", colour: "bad" },
  INTEGRATION_STATE_STARTING: { word: "Starting", colour: "busy" },
  INTEGRATION_STATE_UNSPECIFIED: { word: "Not looked at yet", colour: "unknown" },
};

const ENDS = {
  stop: "complete",
  length: "cut off at the token limit",
  tool_calls: "a call of a tool",
  content_filter: "withheld by a content filter",
};

/** Why an answer ended, by OpenAI's name or the contract's. */
export function ending(reason) {
  const name = String(reason ?? "").replace("FINISH_REASON_", "").toLowerCase();
  return ENDS[name] ?? name.replaceAll("_", " ");
}

const METHODS = {
  ROUTE_METHOD_EXPLICIT: "named by the request",
  ROUTE_METHOD_RULE: "a rule",
  ROUTE_METHOD_SEMANTIC: "its meaning",
  ROUTE_METHOD_LEXICAL: "its letters",
  ROUTE_METHOD_DEFAULT: "the default",
};

/** How a route was decided. */
export const method = (name) => METHODS[name] ?? "";

/** A sentence, which messages of the API are but for their first letter. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Over a shorter time a rate says more of the network than of the model, in milliseconds. */
const LEAST_WRITING = 50;

/** What an answer cost, as terms and values. */
export function usageFacts(usage, latencyMs, firstMs) {
  if (!usage || usage.source === "USAGE_SOURCE_MISSING") return [["Usage", "not told by the backend"]];
  const { prompt_tokens: prompt, completion_tokens: completion, total_tokens: total } = usage;
  const writing = latencyMs - firstMs;
  // The first token is paid for by the time until it came.
  const rate = completion > 1 && firstMs > 0 && writing > LEAST_WRITING ? (completion - 1) / (writing / 1000) : 0;
  return [
    ["Prompt tokens", number(prompt)],
    ["Completion tokens", number(completion)],
    ["Total tokens", number(total)],
    ["Usage", usage.source === "USAGE_SOURCE_ESTIMATED" ? "estimated" : ""],
    ["Speed", rate ? `${rate < 10 ? rate.toFixed(1) : number(Math.round(rate))} tokens/s` : ""],
  ];
}
